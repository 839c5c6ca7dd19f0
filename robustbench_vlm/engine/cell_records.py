"""Records of a cell with their identity and score, from a run's folder or an entry, and the checks on them.

The fingerprint is computed again from the identity and the records themselves, so that records of other weights,
images, prompts, attacks or eps cannot be passed off as those of the cell.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import inside
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import CLEAN, SampleResult, Score
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.manifest import MANIFEST, Manifest, ManifestCell, read_manifest
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.engine.store import read_cell

Condition = tuple[str, str, str, Fraction]
"""Attack, dataset, norm and eps."""


class Unsound(UserError):
    """Records or an entry that contradict themselves or the cell that they name."""


class Unreachable(UserError):
    """Records that cannot be downloaded from the address in their entry at the moment."""


@dataclass(frozen=True)
class CellRecords:
    """The records of one cell with their identity and score."""

    track: str
    protocol: str
    """Name and version, "mini/1"."""
    identity: Mapping[str, Any]
    """`Cell.identity` without the ids of the samples, which the records have."""
    fingerprint: str
    score: Score
    results: tuple[SampleResult, ...]

    @property
    def threat(self) -> Threat:
        """The threat under which the samples were attacked."""
        return Threat(self.identity["threat"]["norm"], Fraction(self.identity["threat"]["eps"]))

    @property
    def condition(self) -> Condition:
        """The attack, dataset, norm and eps of the records."""
        return self.score.attack, self.score.dataset, self.threat.norm, self.threat.eps


def read_run(folder: Path) -> tuple[CellRecords, ...]:
    """Read the complete cells of a folder runs/<track>/<model>/<attack>, or runs/<track>/<model> for all attacks.

    Unfinished cells are left out. Raises UserError if there is no complete cell, and for records that are damaged or
    do not belong to their fingerprint.
    """
    found = [records for path in manifests(folder) for records in _of_manifest(path)]
    if not found:
        raise UserError(
            f"there is no finished run in {folder}: give a folder runs/<track>/<model> that `vlmbench run` wrote"
        )
    return tuple(found)


def manifests(folder: Path) -> list[Path]:
    """Return the manifests in the folder of one attack, or in the folders of all attacks of a model."""
    return sorted([*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")])


def sound_cells(folder: Path, leave_out: Collection[str]) -> dict[str, ManifestCell]:
    """Return the cells of a manifest whose records confirm their scores, by folder name; unfinished cells are kept.

    A damaged manifest or a forged row is left out, since the records have all its facts.
    """
    try:
        manifest = read_manifest(folder / MANIFEST)
    except UserError:
        return {}
    found: dict[str, ManifestCell] = {}
    for name, cell in manifest.cells.items():
        if name in leave_out:
            continue
        with contextlib.suppress(UserError), warnings.catch_warnings(action="ignore"):
            if inside(folder, name).is_dir():
                if cell.score:
                    _read_cell_of(folder, manifest, name, cell, cell.score)
                found[name] = cell
    return found


def checked(records: CellRecords) -> CellRecords:
    """Return the records with eps in today's spelling; raise Unsound if they contradict identity or score."""
    results, score = records.results, records.score
    about = f"the records of {score.model} / {score.attack} / {score.dataset} / {records.threat}"
    ids = [result.sample_id for result in results]
    if len(set(ids)) < len(ids):
        raise Unsound(f"{about} have a sample twice")
    if data_digest(results) != records.identity["data"]:
        raise Unsound(f"{about} are of other samples than they say: some were dropped, added or changed")
    if fingerprint({**records.identity, "samples": ids}) != records.fingerprint:
        raise Unsound(f"{about} carry a fingerprint that is not that of what they say they are about")
    said = {"classes": len(records.identity["classes"]), **accuracies(results)}
    if not _is_radius(score.eps, records.threat) or any(getattr(score, name) != said[name] for name in said):
        raise Unsound(f"{about} give other accuracies than stand beside them")
    stages = {stage["name"] for stage in records.identity["attack"]["stages"]}
    for result in results:
        if problem := _contradiction(result, records.threat, stages):
            raise Unsound(f"{about} contradict themselves: {result.sample_id} {problem}")
    return dataclasses.replace(records, score=dataclasses.replace(score, eps=records.threat.eps_text))


def _is_radius(text: str, threat: Threat) -> bool:
    try:
        return parse_eps(text) == threat.eps
    except UserError:
        return False


def _contradiction(result: SampleResult, threat: Threat, stages: AbstractSet[str]) -> str:
    """Return the contradiction in a record in words, "" if there is none."""
    is_wrong, is_robust = result.broken_by == CLEAN, result.broken_by == ""
    limit = float(threat.eps) * (1 + 1e-5) + 1e-7
    impossible = {
        "has a number that is none": not (math.isfinite(result.margin) and math.isfinite(result.distance)),
        "is wrong when clean, or is not, against its prediction": is_wrong != (result.clean_prediction != result.label),
        "is robust against its prediction": is_robust and result.adversarial_prediction != result.label,
        "was broken without another prediction": not is_robust and result.adversarial_prediction == result.label,
        "was broken by no stage of the attack": not is_robust and not is_wrong and result.broken_by not in stages,
        "took a negative number of passes": result.forward < 0 or result.backward < 0,
        "was broken outside the radius": result.distance < 0 or result.distance > limit,
    }
    return next((problem for problem, holds in impossible.items() if holds), "")


def data_digest(results: Sequence[SampleResult]) -> str:
    """Return the data digest of the samples of records, see `Samples.digest`."""
    return fingerprint([[result.sample_id, result.label, result.image_sha256] for result in results])


def _of_manifest(path: Path) -> list[CellRecords]:
    manifest = read_manifest(path)
    return [
        _read_cell_of(path.parent, manifest, name, cell, cell.score)
        for name, cell in manifest.cells.items()
        if cell.score is not None
    ]


def _read_cell_of(folder: Path, manifest: Manifest, name: str, cell: ManifestCell, score: Score) -> CellRecords:
    """Return the checked records of one cell that a manifest lists."""
    identity = {key: value for key, value in cell.identity.items() if key != "samples"}
    try:
        about = manifest.model, identity["attack"]["name"], identity["dataset"]
        if (score.model, score.attack, score.dataset) != about:
            raise Unsound(f"{folder / MANIFEST} gives the records of {name} to another model, attack or dataset")
        results = read_cell(inside(folder, name), cell.fingerprint, score.n)
        return checked(CellRecords(manifest.track, cell.protocol, identity, cell.fingerprint, score, results))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{folder / MANIFEST} is not a run's manifest: the identity of {name} cannot be used ({error}); give the"
            " command of the run again, which writes it"
        ) from error
