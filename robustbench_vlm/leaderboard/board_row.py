"""The row of one entry in the table of a track, without its ranks."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.board import BoardRow
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.known_estimates import with_estimates
from robustbench_vlm.leaderboard.known_verdicts import KnownVerdicts, accuracy, mean_without, worst_known
from robustbench_vlm.models.card import bundled_names, parse_card
from robustbench_vlm.models.papers import PAPERS
from robustbench_vlm.tracks import Track


@dataclass(frozen=True)
class CheckedEntry:
    """An entry with its checked records and its verdicts at the track's standard radius."""

    entry: Entry
    evidence: tuple[CellRecords, ...]
    verdicts: Mapping[str, KnownVerdicts]


def make_row(checked: CheckedEntry, track: Track) -> BoardRow:
    """Return the row of an entry without its ranks."""
    entry, card = checked.entry, checked.entry.card
    clean, robust = _strata(checked, "clean"), _strata(checked, "robust")
    row = BoardRow(
        model=entry.model,
        rank="",
        clean_rank=0,
        rank_difference=0,
        status=entry.status,
        defense=str(card.get("defense", "")),
        fidelity=_fidelity(entry),
        training=_training(card.get("training", {})),
        architecture=str(card["architecture"]),
        paper=str(card.get("paper", "")),
        citation=parse_card(card).citation or PAPERS.get(str(card.get("paper", ""))),
        licence=str(card.get("licence", "")),
        note=entry.note,
        links=entry.links,
        clean=mean_without(clean, track.training_datasets),
        robust=mean_without(robust, track.training_datasets),
        under=_under(checked, track),
        curve=_curve(checked, track),
        datasets={name: {"clean": accuracy(clean[name]), "robust": accuracy(robust[name])} for name in clean},
        passes=sum(row.forward + row.backward for each in checked.evidence for row in each.results),
        warnings=_warnings(checked, track),
        counterexamples=len(entry.counterexamples),
        history=tuple(plain(event) for event in entry.history),
        records=plain(entry.records),
        command=_command(entry, track),
    )
    return with_estimates(row, entry, checked.evidence, track)


def _strata(checked: CheckedEntry, which: str) -> dict[str, Sequence[bool]]:
    return {name: getattr(verdicts, which) for name, verdicts in checked.verdicts.items()}


def _fidelity(entry: Entry) -> str:
    """Return how closely the recipe of a bundled model follows its paper.

    For a model that is not bundled, return "".
    """
    defense = str(entry.card.get("defense", ""))
    if entry.model not in bundled_names(entry.track) or defense not in DEFENSES.names():
        return ""
    return str(DEFENSES.load(defense).fidelity)


def _training(training: Mapping[str, Any]) -> str:
    eps = str(training.get("eps", ""))
    radius = ""
    if eps:
        # The radius in the card of a submission may be any text. If it is not a number, it is shown unchanged.
        with contextlib.suppress(UserError):
            eps = Threat("Linf", parse_eps(eps)).eps_text
        radius = f"eps {eps}"
    return ", ".join(part for part in (str(training.get("dataset", "")), radius) if part)


def _under(checked: CheckedEntry, track: Track) -> dict[str, Any]:
    """Return the mean robust accuracy at the standard radius. The keys are attack names.

    Only attacks that were run on all evaluated datasets are included.
    """
    cells = [each for each in checked.evidence if each.threat == Threat(track.norm, track.standard_eps)]
    attacks = dict.fromkeys(each.score.attack for each in cells)
    own = {
        attack: {
            each.score.dataset: [row.broken_by == "" for row in each.results]
            for each in cells
            if each.score.attack == attack
        }
        for attack in attacks
    }
    return {
        attack: mean_without(found, track.training_datasets)
        for attack, found in own.items()
        if set(found) == set(checked.verdicts)
    }


def _curve(checked: CheckedEntry, track: Track) -> tuple[CurvePoint, ...]:
    radii = sorted({each.threat.eps for each in checked.evidence if each.threat.norm == track.norm})
    points = []
    for eps in radii:
        threat = Threat(track.norm, eps)
        found = worst_known(checked.evidence, checked.entry.counterexamples, threat)
        if set(found) == set(checked.verdicts):
            robust = mean_without({name: verdicts.robust for name, verdicts in found.items()}, track.training_datasets)
            attacks = _complete_attacks(checked.evidence, threat, found)
            points.append(CurvePoint(threat.eps_text, float(eps), robust, attacks))
    return tuple(points)


def _complete_attacks(evidence: Iterable[CellRecords], threat: Threat, datasets: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the attacks with records of all datasets at a radius."""
    found: dict[str, set[str]] = {}
    for each in evidence:
        if each.threat == threat:
            found.setdefault(each.score.attack, set()).add(each.score.dataset)
    return tuple(sorted(attack for attack, names in found.items() if names >= set(datasets)))


def _warnings(checked: CheckedEntry, track: Track) -> tuple[str, ...]:
    """Return each warning code at the standard radius, followed by the datasets that have the warning."""
    cells = [each for each in checked.evidence if each.threat == Threat(track.norm, track.standard_eps)]
    pairs = {(code.partition(":")[0], each.score.dataset): None for each in cells for code in each.score.warnings}
    counts = Counter(code for code, _ in pairs)
    return tuple(f"{code}: {', '.join(name for other, name in pairs if other == code)}" for code in sorted(counts))


def _command(entry: Entry, track: Track) -> str:
    options = f"--protocol {track.leaderboard_protocol} --attack {track.attack}"
    return f"vlmbench run --track {track.name} --model {entry.model} {options}"
