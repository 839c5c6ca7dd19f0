"""Ranking of a track's entries by the lowest known robust accuracy.

A counterexample is a misclassified adversarial image that is listed in an entry. A sample counts as robust if it is
classified correctly under all recorded attacks and counterexamples within the radius. Models share their ranks if their
mean robust accuracies do not differ significantly in a paired test.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.comparison.statistics import ALPHA, compare_means, enough_draws, holm, rank_ranges
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import CLEAN, Accuracy, EstimatedAccuracy, Verdict
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.engine.cell_records import CellRecords, Unreachable
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, entry_paths, read_entry
from robustbench_vlm.leaderboard.known_estimates import imputed, known_estimates, with_estimates
from robustbench_vlm.leaderboard.masking import needs_stronger_attack
from robustbench_vlm.leaderboard.reported import read_reported
from robustbench_vlm.leaderboard.validate import check_entry, misplaced
from robustbench_vlm.models.card import bundled_names
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS, Track

_TRUST = ("verified", "reproduced", "claimed", "disputed")
"""The statuses of entries, best first. If two entries contradict each other, the one with the better status is kept."""


@dataclass(frozen=True)
class KnownVerdicts:
    """Verdicts for the samples of one dataset at one radius, after all recorded attacks and counterexamples.

    All fields have one item for each sample, in the order of the records.
    """

    ids: tuple[str, ...]
    clean: tuple[bool, ...]
    """True for samples that are classified correctly without an attack."""
    robust: tuple[bool, ...]
    """True for samples that are classified correctly, also after all recorded attacks and counterexamples."""
    unfinished: tuple[bool, ...]
    """True for samples that nothing breaks and that an estimated run at this radius did not attack in full. For these
    samples, `robust` is False."""


def worst_known(
    evidence: Iterable[CellRecords], counterexamples: Sequence[Counterexample], threat: Threat
) -> dict[str, KnownVerdicts]:
    """Return one model's verdicts. The keys are dataset names.

    A sample is not robust if it is misclassified after any recorded attack or in any counterexample. The radius may be
    smaller than the radius of `threat`, but the norm must be the same. Only datasets that were attacked under exactly
    `threat` are included.
    """
    within = [each for each in evidence if each.threat.norm == threat.norm and each.threat.eps <= threat.eps]
    found: dict[str, KnownVerdicts] = {}
    for name in dict.fromkeys(each.score.dataset for each in within if each.threat == threat):
        own = [each for each in within if each.score.dataset == name]
        # In an entry, the records of one dataset have the same samples in the same order under all attacks.
        rows = list(zip(*(each.results for each in own), strict=True))
        broken = {
            each.sample_id
            for each in counterexamples
            if (each.dataset, each.norm) == (name, threat.norm) and each.distance <= float(threat.eps) + 1e-7
        }
        lost = [any(r.verdict is Verdict.BROKEN for r in row) or row[0].sample_id in broken for row in rows]
        here = [place for place, each in enumerate(own) if each.threat == threat]
        waiting = [any(row[place].verdict is Verdict.UNFINISHED for place in here) for row in rows]
        found[name] = KnownVerdicts(
            ids=tuple(row[0].sample_id for row in rows),
            clean=tuple(row[0].broken_by != CLEAN for row in rows),
            robust=tuple(not each and not later for each, later in zip(lost, waiting, strict=True)),
            unfinished=tuple(later and not each for each, later in zip(lost, waiting, strict=True)),
        )
    return found


def accuracy(verdicts: Sequence[bool]) -> Accuracy:
    """Return the accuracy with its 95 % Wilson interval. A verdict is True for a correct prediction."""
    return Accuracy.of_counts(sum(verdicts), len(verdicts))


def mean_accuracy(strata: Sequence[Sequence[bool]]) -> Accuracy:
    """Return the mean accuracy over datasets, with its 95 % interval.

    `strata` has the verdicts of each dataset. The mean is unweighted.
    """
    return Accuracy.mean([accuracy(each) for each in strata])


def mean_without(verdicts: Mapping[str, Sequence[bool]], seen: Sequence[str]) -> Accuracy:
    """Return the mean accuracy over the datasets that are not in `seen`, the datasets for training.

    If all datasets are in `seen`, return the mean over all of them.
    """
    kept = [each for name, each in verdicts.items() if name not in seen]
    return mean_accuracy(kept or list(verdicts.values()))


@dataclass(frozen=True)
class CheckedEntry:
    """An entry with its checked records and its verdicts at the track's standard radius."""

    entry: Entry
    evidence: tuple[CellRecords, ...]
    verdicts: Mapping[str, KnownVerdicts]
    estimate: EstimatedAccuracy | None
    """The estimated mean robust accuracy, or None if all samples are finished."""
    is_ranked: bool
    """True if the track's attack was run on every dataset of the track, the entry is not disputed, and it does not need
    a stronger attack (`needs_stronger_attack`)."""


@dataclass(frozen=True)
class FolderEntries:
    """The entries in a track's folder: the checked ones, and messages about those that are left out."""

    checked: tuple[CheckedEntry, ...]
    absent: Mapping[str, str]
    """Error messages for entries whose records cannot be downloaded. The keys are model names."""
    refused: Mapping[str, str]
    """Error messages for invalid entries. The keys are the names of the entry files without ".json"."""


def read_entries(folder: Path, track: Track) -> FolderEntries:
    """Read and check all entries in a track's folder.

    Invalid entries, and entries whose records cannot be downloaded, are left out. One such entry does not affect the
    others.
    """
    found, absent, refused = [], {}, {}
    for path in entry_paths(folder):
        try:
            checked = _read_checked(path, track)
        except Unreachable as error:
            absent[path.stem] = str(error)
        except UserError as error:
            refused[path.stem] = str(error)
        else:
            found += [checked] if checked.verdicts else []
    kept, conflicts = _without_conflicts(found)
    return FolderEntries(kept, absent, refused | conflicts)


def _read_checked(path: Path, track: Track) -> CheckedEntry:
    entry = read_entry(path)
    if (entry.track, f"{entry.model}.json") != (track.name, path.name):
        raise misplaced(entry, path)
    evidence = check_entry(entry, path.parent)
    threat = Threat(track.norm, track.standard_eps)
    verdicts = worst_known(evidence, entry.counterexamples, threat)
    estimate = known_estimates(evidence, entry.counterexamples, threat, track.training_datasets).get("")
    is_complete = not datasets_without_standard_attack(evidence, track)
    is_ranked = is_complete and entry.status != "disputed" and not needs_stronger_attack(evidence, track)
    return CheckedEntry(entry, evidence, verdicts, estimate, is_ranked)


def datasets_without_standard_attack(evidence: Iterable[CellRecords], track: Track) -> list[str]:
    """Return the datasets of a track without records of the standard attack at the standard radius."""
    complete = {
        each.score.dataset
        for each in evidence
        if each.score.attack == track.attack and (each.threat.norm, each.threat.eps) == (track.norm, track.standard_eps)
    }
    return [name for name in track.datasets if name not in complete]


def _without_conflicts(found: Sequence[CheckedEntry]) -> tuple[tuple[CheckedEntry, ...], dict[str, str]]:
    """Leave out entries that contradict another entry. Return the other entries, and a message for each one left out.

    The names of two entries may not differ only in upper and lower case. Two entries may not have the same weights, or
    different samples of the same dataset. Of two such entries, the one with the better status is kept. If both have the
    same status, the one with the earlier submission is kept. A new submission therefore cannot remove another entry.
    """
    names: dict[str, str] = {}
    weights: dict[str, str] = {}
    data: dict[str, tuple[str, str]] = {}
    conflicts: dict[str, str] = {}
    for each in sorted(found, key=_precedence):
        entry = each.entry
        known = ((name, *data.get(name, (about.data, "")), about.data) for name, about in entry.datasets.items())
        different = [(name, first) for name, digest, first, own in known if digest != own]
        if other := names.get(entry.model.casefold()):
            problem = f"differ only in upper and lower case: rename {entry.model!r}"
        elif other := weights.get(entry.weights):
            problem = "have the same weights: one model has one entry, so remove one of them"
        elif different:
            name, other = different[0]
            problem = f"have different samples of {name!r}: run both on the same data"
        else:
            names[entry.model.casefold()] = weights[entry.weights] = entry.model
            data = {name: (about.data, entry.model) for name, about in entry.datasets.items()} | data
            continue
        conflicts[entry.model] = f"the entries {other!r} and {entry.model!r} {problem}"
    return tuple(each for each in found if each.entry.model not in conflicts), conflicts


def _precedence(checked: CheckedEntry) -> tuple[int, str, str]:
    """Return the sorting key of an entry: better statuses first, then earlier submissions, then the name."""
    entry = checked.entry
    return _TRUST.index(entry.status), entry.history[0].date, entry.model


def make_board(track_name: str, folder: Path) -> Board:
    """Return the board of a track from the entries and the reported numbers in a folder.

    Entries with complete records of the track's attack are ranked, unless they are disputed. The other entries come
    after them, without a rank. Invalid entries, and entries whose records cannot be downloaded, are left out.
    """
    track: Track = TRACKS.load(track_name)
    entries = read_entries(folder, track)
    found = sorted(entries.checked, key=lambda each: (-_mean(each, track, "robust"), each.entry.model))
    protocol = PROTOCOLS.load(track.leaderboard_protocol)
    threat = Threat(track.norm, track.standard_eps)
    return Board(
        track=track.name,
        description=track.description,
        protocol={"label": protocol.label, "identity": protocol.identity},
        attack=track.attack,
        norm=threat.norm,
        eps=threat.eps_text,
        datasets=track.datasets,
        seen=track.training_datasets,
        rows=(
            *_ranked_rows([each for each in found if each.is_ranked], track),
            *(_row(each, track) for each in found if not each.is_ranked),
        ),
        absent=entries.absent,
        refused=entries.refused,
        reported=read_reported(folder),
    )


def _mean(checked: CheckedEntry, track: Track, which: str) -> float:
    if which == "robust" and checked.estimate:
        return checked.estimate.value
    return mean_without(_strata(checked, which), track.training_datasets).value


def _strata(checked: CheckedEntry, which: str) -> dict[str, Sequence[bool]]:
    return {name: getattr(verdicts, which) for name, verdicts in checked.verdicts.items()}


def _ranked_rows(ranked: Sequence[CheckedEntry], track: Track) -> list[BoardRow]:
    """Return the rows of entries with their ranks. The entries are sorted by their mean robust accuracy."""
    different = _different_pairs(ranked, track)
    ranks = rank_ranges(
        [_mean(each, track, "robust") for each in ranked], lambda first, second: frozenset((first, second)) in different
    )
    cleans = [_mean(each, track, "clean") for each in ranked]
    robusts = [_mean(each, track, "robust") for each in ranked]
    rows = []
    for checked, rank, clean, robust in zip(ranked, ranks, cleans, robusts, strict=True):
        clean_rank = 1 + sum(other > clean for other in cleans)
        difference = clean_rank - 1 - sum(other > robust for other in robusts)
        rows.append(_row(checked, track, rank, clean_rank, difference))
    return [rows[number] for number in _full_first(ranked, different)]


def _full_first(ranked: Sequence[CheckedEntry], different: Collection[frozenset[int]]) -> list[int]:
    """Return the indices of the entries in the order of the table.

    An estimate comes after the full numbers that follow it and do not differ significantly from it.
    """
    order = list(range(len(ranked)))
    for start in reversed(order):
        for place in range(start, len(order) - 1):
            first, second = order[place : place + 2]
            is_tie = frozenset((first, second)) not in different
            if not (is_tie and ranked[first].estimate and not ranked[second].estimate):
                break
            order[place : place + 2] = second, first
    return order


def _different_pairs(ranked: Sequence[CheckedEntry], track: Track) -> set[frozenset[int]]:
    """Return the pairs of entries whose mean robust accuracies differ significantly in a paired test.

    Entries are given by their index in `ranked`, which is sorted by the mean. The p values are corrected for the number
    of pairs by Holm's method. An estimate is tested with the end of its design interval that is nearer to the other
    entry.
    """
    pairs = list(combinations(range(len(ranked)), 2))
    # Entries may list their datasets in different orders. The paired test needs the same order in all entries.
    names = [name for name in track.datasets if name not in track.training_datasets]
    lowest, highest = ([_at_end(each, names, track, end) for each in ranked] for end in (0, 1))
    draws = enough_draws(len(pairs))
    tests = [compare_means(lowest[first], highest[second], draws=draws) for first, second in pairs]
    p = holm([test.p if test.difference > 0 else 1.0 for test in tests])
    return {frozenset(pair) for pair, adjusted in zip(pairs, p, strict=True) if adjusted <= ALPHA}


def _at_end(checked: CheckedEntry, names: Sequence[str], track: Track, end: int) -> list[Sequence[bool]]:
    """Return the verdicts of an entry on each dataset, True for robust samples.

    If the entry is estimated, the mean is at the lower (`end` 0) or the upper (`end` 1) end of its design interval.
    """
    known = [checked.verdicts[name] for name in names]
    if checked.estimate is None:
        return [each.robust for each in known]
    seed = PROTOCOLS.load(track.leaderboard_protocol).seed
    return imputed(
        [(name, each.ids, each.robust, each.unfinished) for name, each in zip(names, known, strict=True)],
        checked.estimate.full_attack[end],
        seed,
    )


def _row(checked: CheckedEntry, track: Track, rank: str = "", clean_rank: int = 0, difference: int = 0) -> BoardRow:
    entry, card = checked.entry, checked.entry.card
    clean, robust = _strata(checked, "clean"), _strata(checked, "robust")
    row = BoardRow(
        model=entry.model,
        rank=rank,
        clean_rank=clean_rank,
        rank_difference=difference,
        status=entry.status,
        defense=str(card.get("defense", "")),
        fidelity=_fidelity(entry),
        training=_training(card.get("training", {})),
        architecture=str(card["architecture"]),
        paper=str(card.get("paper", "")),
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
            points.append(CurvePoint(threat.eps_text, float(eps), robust))
    return tuple(points)


def _warnings(checked: CheckedEntry, track: Track) -> tuple[str, ...]:
    """Return each warning code at the standard radius, followed by the datasets that have the warning."""
    cells = [each for each in checked.evidence if each.threat == Threat(track.norm, track.standard_eps)]
    pairs = {(code.partition(":")[0], each.score.dataset): None for each in cells for code in each.score.warnings}
    counts = Counter(code for code, _ in pairs)
    return tuple(f"{code}: {', '.join(name for other, name in pairs if other == code)}" for code in sorted(counts))


def _command(entry: Entry, track: Track) -> str:
    options = f"--protocol {track.leaderboard_protocol} --attack {track.attack}"
    return f"vlmbench run --track {track.name} --model {entry.model} {options}"
