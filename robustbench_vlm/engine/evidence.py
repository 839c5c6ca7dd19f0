"""Records of a cell with their identity and score, from a run's folder or an entry, and the checks on them.

The fingerprint is computed again from the identity and the records themselves, so that records of other weights,
images, prompts, attacks or eps cannot be passed off as those of the cell.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
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
    """Records or an entry that contradict themselves, or what they say they are of: not a mistake, nor bad luck."""


class Unreachable(UserError):
    """Records that the address in their entry does not give, today at least."""


@dataclass(frozen=True)
class Evidence:
    """One model x attack x dataset x threat, sample by sample."""

    track: str
    protocol: str
    """Name and version, "mini/1"."""
    identity: Mapping[str, Any]
    """What `Cell.identity` has, but for the ids of the samples, which the records have."""
    fingerprint: str
    score: Score
    results: tuple[SampleResult, ...]

    @property
    def threat(self) -> Threat:
        """The threat that the samples were attacked under."""
        return Threat(self.identity["threat"]["norm"], Fraction(self.identity["threat"]["eps"]))

    @property
    def condition(self) -> Condition:
        """What the records are of."""
        return self.score.attack, self.score.dataset, self.threat.norm, self.threat.eps


def read_run(folder: Path) -> tuple[Evidence, ...]:
    """Read the whole cells below a run's folder: of one attack, runs/<track>/<model>/<attack>, or of all its attacks.

    Cells that are not finished are left out. Raises UserError where there is no whole cell, and for records that are
    damaged or not those of their fingerprint.
    """
    found = [evidence for path in manifests(folder) for evidence in _of_manifest(path)]
    if not found:
        raise UserError(
            f"there is no finished run in {folder}: give a folder runs/<track>/<model> that `vlmbench run` wrote"
        )
    return tuple(found)


def manifests(folder: Path) -> list[Path]:
    """Return the manifests of a run's folder: that of one attack, or those of all attacks below a model's."""
    return sorted([*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")])


def sound_cells(folder: Path) -> dict[str, ManifestCell]:
    """Return the cells of a manifest that their records bear out, by folder name; those without a score are kept.

    A manifest only repeats what the records say, so a damaged one or a forged row is left out.
    """
    try:
        manifest = read_manifest(folder / MANIFEST)
    except UserError:
        return {}
    found: dict[str, ManifestCell] = {}
    for name, cell in manifest.cells.items():
        with contextlib.suppress(UserError):
            if inside(folder, name).is_dir():
                if cell.score:
                    _read_cell_of(folder, manifest, name, cell, cell.score)
                found[name] = cell
    return found


def checked(evidence: Evidence) -> Evidence:
    """Return the evidence, its radius as it is written today; raise Unsound where it is not what its records give."""
    results, score = evidence.results, evidence.score
    about = f"the records of {score.model} / {score.attack} / {score.dataset} / {evidence.threat}"
    ids = [result.sample_id for result in results]
    if len(set(ids)) < len(ids):
        raise Unsound(f"{about} have a sample twice")
    if data_digest(results) != evidence.identity["data"]:
        raise Unsound(f"{about} are of other samples than they say: some were dropped, added or changed")
    if fingerprint({**evidence.identity, "samples": ids}) != evidence.fingerprint:
        raise Unsound(f"{about} carry a fingerprint that is not that of what they say they are about")
    said = {"classes": len(evidence.identity["classes"]), **accuracies(results)}
    if not _is_radius(score.eps, evidence.threat) or any(getattr(score, name) != said[name] for name in said):
        raise Unsound(f"{about} give other accuracies than stand beside them")
    stages = {stage["name"] for stage in evidence.identity["attack"]["stages"]}
    for result in results:
        if problem := _contradiction(result, evidence.threat, stages):
            raise Unsound(f"{about} contradict themselves: {result.sample_id} {problem}")
    return dataclasses.replace(evidence, score=dataclasses.replace(score, eps=evidence.threat.eps_text))


def _is_radius(text: str, threat: Threat) -> bool:
    try:
        return parse_eps(text) == threat.eps
    except UserError:
        return False


def _contradiction(result: SampleResult, threat: Threat, stages: AbstractSet[str]) -> str:
    """Return what a record says that cannot be, "" if nothing."""
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
    """Return the data digest of the samples that records are about, see `Samples.digest`."""
    return fingerprint([[result.sample_id, result.label, result.image_sha256] for result in results])


def read_score(values: Mapping[str, Any]) -> Score:
    """Return the score that JSON values are."""
    pairs = {name: (float(values[name][0]), float(values[name][1])) for name in ("clean_interval", "robust_interval")}
    return Score(**{**values, **pairs, "warnings": tuple(values["warnings"])})


def _of_manifest(path: Path) -> list[Evidence]:
    manifest = read_manifest(path)
    return [
        _read_cell_of(path.parent, manifest, name, cell, cell.score)
        for name, cell in manifest.cells.items()
        if cell.score is not None
    ]


def _read_cell_of(folder: Path, manifest: Manifest, name: str, cell: ManifestCell, score: Score) -> Evidence:
    """Return the checked records of one cell that a manifest lists."""
    identity = {key: value for key, value in cell.identity.items() if key != "samples"}
    try:
        about = manifest.model, identity["attack"]["name"], identity["dataset"]
        if (score.model, score.attack, score.dataset) != about:
            raise Unsound(f"{folder / MANIFEST} gives the records of {name} to another model, attack or dataset")
        results = read_cell(inside(folder, name), cell.fingerprint, score.n)
        return checked(Evidence(manifest.track, cell.protocol, identity, cell.fingerprint, score, results))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{folder / MANIFEST} is not a run's manifest: the identity of {name} cannot be used ({error}); give the"
            " command of the run again, which writes it"
        ) from error
