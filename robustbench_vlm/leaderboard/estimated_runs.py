"""Read the unfinished cells of an estimated run from its run folder, for a submission."""

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords, Condition, checked, manifests
from robustbench_vlm.engine.estimated_run import EstimatedCell, read_phases
from robustbench_vlm.engine.manifest import Manifest, ManifestCell, read_manifest
from robustbench_vlm.engine.results import score
from robustbench_vlm.leaderboard.rebuild import expect_same, plan_of, scores_with_warnings
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import Track


def read_unfinished(run: Path, track: Track, *, model: str = "", data: Path | None = None) -> list[CellRecords]:
    """Return the records of the cells of a run folder that an estimated run left unfinished.

    Cells of other datasets than those of the track, of another protocol than the one of its leaderboard, and cells
    without complete records of the first phase are left out.

    Args:
        run: The run folder, runs/<track>/<model> or runs/<track>/<model>/<attack>.
        track: The track of the run.
        model: The reference that loads the model. It is needed only if the name in the run does not load the model.
        data: The folder of prepared datasets.

    Raises:
        UserError: The records were made with another model, other data or another protocol than on this machine.
    """
    label = PROTOCOLS.load(track.leaderboard_protocol).label
    found: list[CellRecords] = []
    for path in manifests(run):
        manifest = read_manifest(path)
        unfinished = {
            _condition(manifest.attack, cell): cell
            for cell in manifest.cells.values()
            if cell.score is None and cell.protocol == label and cell.identity["dataset"] in track.datasets
        }
        if not unfinished:
            continue
        plan, numbers = plan_of(list(unfinished), model or manifest.model, track.name, label, data=data)
        cells = [plan.cells[number] for number in numbers]
        for cell, stated in zip(cells, unfinished.values(), strict=True):
            expect_same(stated.fingerprint, _identity(stated), cell)
        for threat in dict.fromkeys(cell.threat for cell in cells):
            group = read_phases(path.parent, [cell for cell in cells if cell.threat == threat])
            stated_cells = [unfinished[_condition_of(each.cell)] for each in group]
            found += _records(manifest, group, stated_cells)
    return found


def _records(
    manifest: Manifest, group: Sequence[EstimatedCell], stated: Sequence[ManifestCell]
) -> Iterator[CellRecords]:
    """Yield the checked records of the cells of one attack and threat."""
    found = []
    for each, cell in zip(group, stated, strict=True):
        about = manifest.track, cell.protocol, _identity(cell), cell.fingerprint
        found.append(CellRecords(*about, score(each.cell, each.results), tuple(each.results), each.stages))
    scores = scores_with_warnings([each.cell for each in group], found)
    for records, with_estimate in zip(found, scores, strict=True):
        yield checked(dataclasses.replace(records, score=with_estimate))


def _identity(cell: ManifestCell) -> dict[str, Any]:
    """Return the identity in a manifest without the number of samples."""
    return {key: value for key, value in cell.identity.items() if key != "samples"}


def _condition(attack: str, cell: ManifestCell) -> Condition:
    threat = cell.identity["threat"]
    return attack, cell.identity["dataset"], threat["norm"], Fraction(threat["eps"])


def _condition_of(cell: Cell) -> Condition:
    return cell.attack.name, cell.dataset.name, cell.threat.norm, cell.threat.eps
