"""Read the records of cells from a run folder or a leaderboard entry, and check them.

Each cell (one model, attack, dataset and radius) has records, an identity (the values that determine its accuracy) and
a score. The check computes the fingerprint again from the identity and the records. Records of other weights, images,
prompts, attacks or eps have a different fingerprint and are rejected.
"""

import dataclasses
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.attacks.phases import stages_passed
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import inside
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import CLEAN, DrawnResult, SampleResult, Score, Verdict, draws_needed
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.manifest import MANIFEST, Manifest, ManifestCell, read_manifest
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.engine.store import read_cell

Condition = tuple[str, str, str, Fraction]
"""Type of a tuple: attack name, dataset name, norm and eps."""


class Unsound(UserError):
    """Raised if records or a leaderboard entry are inconsistent, or do not match the cell to which they belong."""


class Unreachable(UserError):
    """Raised if records cannot be downloaded from the address in their entry."""


@dataclass(frozen=True)
class CellRecords:
    """The records of one cell with their identity and score."""

    track: str
    protocol: str
    """Name and version, such as "mini/1"."""
    identity: Mapping[str, Any]
    """`Cell.identity` without the sample ids. The ids are in the records."""
    fingerprint: str
    score: Score
    results: tuple[SampleResult, ...]
    stages: tuple[str, ...] = ()
    """For each sample, the stages that attacked it, as `stages_passed` writes them. () if all samples are finished. If
    not, the robust accuracy in `score` is an estimate."""

    @property
    def drawn(self) -> tuple[bool, ...]:
        """For each sample, whether the second phase of an estimated run attacked it. () if all samples are finished."""
        stages = self.identity["attack"]["stages"]
        first = [stages_passed(stages, each.broken_by, both=False) for each in self.results]
        return tuple(passed != short for passed, short in zip(self.stages, first, strict=True)) if self.stages else ()

    @property
    def threat(self) -> Threat:
        """The threat under which the samples were attacked."""
        return Threat(self.identity["threat"]["norm"], Fraction(self.identity["threat"]["eps"]))

    @property
    def condition(self) -> Condition:
        """The attack, dataset, norm and eps of the records."""
        return self.score.attack, self.score.dataset, self.threat.norm, self.threat.eps


def read_run(folder: Path) -> tuple[CellRecords, ...]:
    """Read the complete cells of a run folder.

    The folder is runs/<track>/<model>/<attack>, or runs/<track>/<model> for all attacks. Unfinished cells are left out.
    Raises UserError if the folder does not contain a complete cell, if records are damaged, or if records do not match
    their fingerprint.
    """
    found = complete_cells(folder)
    if not found:
        raise no_records(folder)
    return found


def complete_cells(folder: Path) -> tuple[CellRecords, ...]:
    """Read the complete cells of a run folder like `read_run`. The result may be empty."""
    return tuple(records for path in manifests(folder) for records in _of_manifest(path))


def no_records(folder: Path) -> UserError:
    """Return the error for a folder without complete records."""
    return UserError(
        f"{folder} does not contain a finished run: give a folder runs/<track>/<model> that `vlmbench run` wrote;"
        " if the run was interrupted or estimated, finish it with the same command, without --half-width"
    )


def manifests(folder: Path) -> list[Path]:
    """Return the paths of the manifests in a folder of one attack or of one model."""
    return sorted(path for pattern in (MANIFEST, f"*/{MANIFEST}") for path in folder.glob(pattern) if path.is_file())


def sound_cells(folder: Path, leave_out: Collection[str]) -> tuple[dict[str, ManifestCell], tuple[str, ...]]:
    """Return the valid cells in the manifest of a run folder, and notes.

    The keys of the cells are the names of their folders. A cell with a score is valid if its records match the score. A
    cell without a score is valid if its folder exists. A note is a sentence that describes an invalid cell or a damaged
    manifest. If the manifest is damaged, no cells are returned. Cells with a folder name in `leave_out` are ignored.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}, ()
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return {}, (f"{path} was damaged and is written again, without cells of other commands: {error}",)
    found: dict[str, ManifestCell] = {}
    notes = []
    for name, cell in manifest.cells.items():
        if name in leave_out:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                if not inside(folder, name).is_dir():
                    raise UserError(f"the folder {name} does not exist")
                if cell.score:
                    _read_cell_of(folder, manifest, name, cell, cell.score)
        except UserError as error:
            notes.append(f"{name} was removed from {path}, because its records are not valid: {error}")
        else:
            found[name] = cell
    return found, tuple(notes)


def checked(records: CellRecords) -> CellRecords:
    """Check records against their identity and score, and return them with eps in the current notation.

    Raises Unsound if the records do not match the identity or the score.
    """
    results, score = records.results, records.score
    about = f"the records of {score.model} / {score.attack} / {score.dataset} / {records.threat}"
    ids = [result.sample_id for result in results]
    if len(set(ids)) < len(ids):
        raise Unsound(f"{about} contain the same sample twice")
    if data_digest(results) != records.identity["data"]:
        raise Unsound(f"{about} do not match their data digest: samples were removed, added or changed")
    if fingerprint({**records.identity, "samples": ids}) != records.fingerprint:
        raise Unsound(f"{about} do not match their fingerprint: the identity or the records were changed")
    expected = {"classes": len(records.identity["classes"]), **accuracies(results)}
    if records.stages:
        # The estimate of an unfinished cell depends on other datasets too. `check_estimates` checks it.
        _check_stages(records, about)
        expected = {name: value for name, value in expected.items() if not name.startswith("robust")}
    if not _is_radius(score.eps, records.threat) or any(getattr(score, name) != expected[name] for name in expected):
        raise Unsound(f"{about} give different accuracies than their score")
    stages = {stage["name"] for stage in records.identity["attack"]["stages"]}
    limit = float(records.threat.eps) * (1 + 1e-5) + 1e-7
    for result in results:
        problem = _contradiction(result, limit, stages, is_estimated=bool(records.stages))
        if problem := problem or _draw_problem(result, records.identity["protocol"].get("draws", 1)):
            raise Unsound(f"{about} contradict themselves: {result.sample_id} {problem}")
    return dataclasses.replace(records, score=dataclasses.replace(score, eps=records.threat.eps_text))


def _check_stages(records: CellRecords, about: str) -> None:
    """Raise Unsound if the stages of an unfinished cell contradict its verdicts."""
    if len(records.stages) != len(records.results):
        raise Unsound(f"{about} have {len(records.results)} samples, but the stages of {len(records.stages)}")
    stages = records.identity["attack"]["stages"]
    for result, passed in zip(records.results, records.stages, strict=True):
        phases = {Verdict.ROBUST: (True,), Verdict.UNFINISHED: (False,), Verdict.BROKEN: (False, True)}[result.verdict]
        allowed = [stages_passed(stages, result.broken_by, both=both) for both in phases]
        if passed not in allowed:
            raise Unsound(
                f"{about} contradict themselves: {result.sample_id} has the verdict {result.verdict.value!r} after the"
                f" stages {passed!r}, expected {' or '.join(map(repr, allowed))}; submit the run again"
            )


def _is_radius(text: str, threat: Threat) -> bool:
    """Return whether a text is a number equal to the eps of a threat. The number may be a fraction or a decimal."""
    try:
        return parse_eps(text) == threat.eps
    except UserError:
        return False


def _contradiction(result: SampleResult, limit: float, stages: AbstractSet[str], *, is_estimated: bool = False) -> str:
    """Return a description of the first contradiction in a record, or "" if the record is consistent.

    `limit` is the largest possible distance: the radius with a tolerance for rounding. Only records of an estimated
    cell may be unfinished.
    """
    is_wrong, is_broken = result.broken_by == CLEAN, result.verdict is Verdict.BROKEN
    impossible = {
        "has a margin or a distance that is NaN or infinite": not (
            math.isfinite(result.margin) and math.isfinite(result.distance)
        ),
        "has a clean verdict that contradicts its prediction": is_wrong != (result.clean_prediction != result.label),
        "is not finished, but its cell is not an estimate": result.verdict is Verdict.UNFINISHED and not is_estimated,
        "is robust, but its prediction is wrong": not is_broken and result.adversarial_prediction != result.label,
        "is broken, but its prediction is correct": is_broken and result.adversarial_prediction == result.label,
        "is broken by an unknown stage": is_broken and not is_wrong and result.broken_by not in stages,
        "has a negative number of passes": result.forward < 0 or result.backward < 0,
        "has a distance outside the radius": result.distance < 0 or result.distance > limit,
    }
    return next((problem for problem, holds in impossible.items() if holds), "")


def _draw_problem(result: SampleResult, draws: int) -> str:
    """Return a description of the first contradiction in the draws of a record, or "" if there is none.

    `draws` is the number of fresh draws of the protocol. It is 1 if the protocol does not have draws.
    """
    if not isinstance(result, DrawnResult):
        return "has no draws, but its protocol has draws" if draws > 1 else ""
    needed = draws_needed(draws)
    is_right = result.clean_right >= needed
    is_robust = is_right and result.right >= needed
    impossible = {
        "has another number of draws than its protocol": result.draws != draws,
        "has more correct draws than draws": not (0 <= result.clean_right <= draws and 0 <= result.right <= draws),
        "has a clean verdict that contradicts its draws": (result.broken_by == CLEAN) == is_right,
        "has a verdict that contradicts its draws": (result.verdict is Verdict.ROBUST) != is_robust,
    }
    return next((problem for problem, holds in impossible.items() if holds), "")


def data_digest(results: Sequence[SampleResult]) -> str:
    """Return the data digest of the samples of records. It is equal to `Samples.digest` of these samples."""
    return fingerprint([[result.sample_id, result.label, result.image_sha256] for result in results])


def _of_manifest(path: Path) -> list[CellRecords]:
    manifest = read_manifest(path)
    return [
        _read_cell_of(path.parent, manifest, name, cell, cell.score)
        for name, cell in manifest.cells.items()
        if cell.score is not None
    ]


def _read_cell_of(folder: Path, manifest: Manifest, name: str, cell: ManifestCell, score: Score) -> CellRecords:
    """Read and check the records of one cell in a manifest."""
    identity = {key: value for key, value in cell.identity.items() if key != "samples"}
    try:
        about = manifest.model, identity["attack"]["name"], identity["dataset"]
        if (score.model, score.attack, score.dataset) != about:
            raise Unsound(f"{folder / MANIFEST} has a score of another model, attack or dataset for {name}")
        results = read_cell(inside(folder, name), cell.fingerprint, score.n)
        return checked(CellRecords(manifest.track, cell.protocol, identity, cell.fingerprint, score, results))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{folder / MANIFEST} is damaged: the identity of {name} cannot be read ({error}); run the same command"
            " again to write the manifest"
        ) from error
