"""Ranking of a track's entries by the lowest known robust accuracy.

A counterexample is a misclassified adversarial image that is listed in an entry. A sample counts as robust if it is
classified correctly under all recorded attacks and counterexamples within the radius. Models share their ranks if their
mean robust accuracies do not differ significantly in a paired test.
"""

import dataclasses
import functools
import multiprocessing
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.comparison.ranks import rank_models
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords, Unreachable
from robustbench_vlm.engine.resources import without_program
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.board_row import CheckedEntry, make_row
from robustbench_vlm.leaderboard.entry import entry_paths, read_entry
from robustbench_vlm.leaderboard.entry_summary import (
    EntrySummary,
    SummaryCache,
    pack_verdicts,
    verdict_matrix,
)
from robustbench_vlm.leaderboard.known_estimates import imputed, known_estimates
from robustbench_vlm.leaderboard.known_verdicts import KnownVerdicts, worst_known
from robustbench_vlm.leaderboard.masking import needs_stronger_attack
from robustbench_vlm.leaderboard.reported import read_reported
from robustbench_vlm.leaderboard.validate import check_entry, misplaced
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS, Track

_MANY = 64
"""Number of entries from which on worker processes save time. Each worker needs half a second for its imports."""
_TRUST = ("verified", "reproduced", "claimed", "disputed")
"""The statuses of entries, best first. If two entries contradict each other, the one with the better status is kept."""


@dataclass(frozen=True)
class FolderEntries:
    """The entries in a track's folder: summaries of the checked ones, and messages about those that are left out."""

    checked: tuple[EntrySummary, ...]
    absent: Mapping[str, str]
    """Error messages for entries whose records cannot be downloaded. The keys are model names."""
    refused: Mapping[str, str]
    """Error messages for invalid entries. The keys are the names of the entry files without ".json"."""


def read_entries(folder: Path, track: Track, cache: Path | None = None, workers: int = 1) -> FolderEntries:
    """Read and check all entries in a track's folder.

    Invalid entries, and entries whose records cannot be downloaded, are left out. One such entry does not affect the
    others. If `cache` is given, unchanged entries are not read again (see `SummaryCache`). Many entries are read by
    `workers` processes.
    """
    paths = entry_paths(folder)
    stored = SummaryCache(cache, folder, track) if cache else None
    found: dict[Path, EntrySummary | UserError | None] = {}
    if stored:
        found = {path: summary for path in paths if (summary := stored.read(path))}
    missing = [path for path in paths if path not in found]
    for path, outcome in zip(missing, _outcomes(missing, track, workers), strict=True):
        found[path] = outcome
        if stored and isinstance(outcome, EntrySummary):
            stored.write(path, outcome)
    if stored:
        stored.prune()
    errors = {path.stem: found[path] for path in paths if isinstance(found[path], UserError)}
    absent = {name: str(error) for name, error in errors.items() if isinstance(error, Unreachable)}
    refused = {name: str(error) for name, error in errors.items() if not isinstance(error, Unreachable)}
    summaries = [each for path in paths if isinstance(each := found[path], EntrySummary)]
    kept, conflicts = _without_conflicts(summaries)
    return FolderEntries(kept, absent, refused | conflicts)


def _outcomes(paths: Sequence[Path], track: Track, workers: int) -> Iterator[EntrySummary | UserError | None]:
    """Yield the result of `_summary` for each entry, or the error of an entry that is left out."""
    if workers < 2 or len(paths) < _MANY:
        yield from (_outcome(path, track) for path in paths)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        function = functools.partial(_outcome, track=track)
        with without_program(function):
            outcomes = pool.map(function, paths, chunksize=8)
        yield from outcomes


def _outcome(path: Path, track: Track) -> EntrySummary | UserError | None:
    try:
        return _summary(path, track)
    except UserError as error:
        return error


def _summary(path: Path, track: Track) -> EntrySummary | None:
    """Read and check an entry and its records. Return None if it has no records at the standard radius of the track."""
    entry = read_entry(path)
    if (entry.track, f"{entry.model}.json") != (track.name, path.name):
        raise misplaced(entry, path)
    evidence = check_entry(entry, path.parent)
    threat = Threat(track.norm, track.standard_eps)
    verdicts = worst_known(evidence, entry.counterexamples, threat)
    if not verdicts:
        return None
    estimate = known_estimates(evidence, entry.counterexamples, threat, track.training_datasets).get("")
    ends = estimate.full_attack if estimate else (0.0, 0.0)
    lowest, highest = (_packed(verdicts, end, track) for end in ends)
    checked = CheckedEntry(entry, evidence, verdicts)
    is_complete = not datasets_without_standard_attack(evidence, track)
    return EntrySummary(
        row=make_row(checked, track),
        weights=entry.weights,
        data={name: about.data for name, about in entry.datasets.items()},
        submitted=entry.history[0].date,
        robust=lowest,
        robust_most=highest,
        is_ranked=is_complete and entry.status != "disputed" and not needs_stronger_attack(evidence, track),
    )


def _packed(verdicts: Mapping[str, KnownVerdicts], mean: float, track: Track) -> dict[str, str]:
    """Return the verdicts of each dataset as hexadecimal digits, with the mean of an estimate at `mean`."""
    seed = PROTOCOLS.load(track.leaderboard_protocol).seed
    unseen = [name for name in verdicts if name not in track.training_datasets] or list(verdicts)
    chosen = [(name, each.ids, each.robust, each.unfinished) for name, each in verdicts.items() if name in unseen]
    declared = dict(zip(unseen, imputed(chosen, mean, seed), strict=True))
    return {name: pack_verdicts(declared.get(name, each.robust)) for name, each in verdicts.items()}


def datasets_without_standard_attack(evidence: Iterable[CellRecords], track: Track) -> list[str]:
    """Return the datasets of a track without records of the standard attack at the standard radius."""
    complete = {
        each.score.dataset
        for each in evidence
        if each.score.attack == track.attack and (each.threat.norm, each.threat.eps) == (track.norm, track.standard_eps)
    }
    return [name for name in track.datasets if name not in complete]


def _without_conflicts(found: Sequence[EntrySummary]) -> tuple[tuple[EntrySummary, ...], dict[str, str]]:
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
        model = each.row.model
        known = ((name, *data.get(name, (digest, "")), digest) for name, digest in each.data.items())
        different = [(name, first) for name, digest, first, own in known if digest != own]
        if other := names.get(model.casefold()):
            problem = f"differ only in upper and lower case: rename {model!r}"
        elif other := weights.get(each.weights):
            problem = "have the same weights: one model has one entry, so remove one of them"
        elif different:
            name, other = different[0]
            problem = f"have different samples of {name!r}: run both on the same data"
        else:
            names[model.casefold()] = weights[each.weights] = model
            data = {name: (digest, model) for name, digest in each.data.items()} | data
            continue
        conflicts[model] = f"the entries {other!r} and {model!r} {problem}"
    return tuple(each for each in found if each.row.model not in conflicts), conflicts


def _precedence(summary: EntrySummary) -> tuple[int, str, str]:
    """Return the sorting key of an entry: better statuses first, then earlier submissions, then the name."""
    return _TRUST.index(summary.row.status), summary.submitted, summary.row.model


def make_board(track_name: str, folder: Path, cache: Path | None = None, workers: int = 1) -> Board:
    """Return the board of a track from the entries and the reported numbers in a folder.

    Entries with complete records of the track's attack are ranked, unless they are disputed. The other entries come
    after them, without a rank. Invalid entries, and entries whose records cannot be downloaded, are left out. See
    `read_entries` for `cache` and `workers`.
    """
    track: Track = TRACKS.load(track_name)
    entries = read_entries(folder, track, cache, workers)
    found = sorted(entries.checked, key=lambda each: (-each.row.robust.value, each.row.model))
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
            *(each.row for each in found if not each.is_ranked),
        ),
        absent=entries.absent,
        refused=entries.refused,
        reported=read_reported(folder),
    )


def _ranked_rows(ranked: Sequence[EntrySummary], track: Track) -> list[BoardRow]:
    """Return the rows of entries with their ranks. The entries are sorted by their mean robust accuracy."""
    if not ranked:
        return []
    names = [name for name in track.datasets if name not in track.training_datasets]
    ranks = _ranks(ranked, names)
    cleans, robusts = (sorted(getattr(each.row, which).value for each in ranked) for which in ("clean", "robust"))
    rows = []
    for each, rank in zip(ranked, ranks, strict=True):
        clean_rank = 1 + len(ranked) - bisect_right(cleans, each.row.clean.value)
        difference = clean_rank - 1 - len(ranked) + bisect_right(robusts, each.row.robust.value)
        rows.append(dataclasses.replace(each.row, rank=rank, clean_rank=clean_rank, rank_difference=difference))
    return _full_first(rows)


def _ranks(ranked: Sequence[EntrySummary], names: Sequence[str]) -> list[str]:
    """Return the rank of each entry. The rank of an estimate covers both ends of its design interval."""
    ranks = rank_models([verdict_matrix(ranked, name) for name in names]).ranks
    if not any("robust" in each.row.estimates for each in ranked):
        return list(ranks)
    most = rank_models([verdict_matrix(ranked, name, "robust_most") for name in names]).ranks
    found = []
    for pair in zip(ranks, most, strict=True):
        ends = [end for rank in pair for end in _ends(rank)]
        found.append(str(min(ends)) if min(ends) == max(ends) else f"{min(ends)}-{max(ends)}")
    return found


def _ends(rank: str) -> tuple[int, int]:
    first, _, last = rank.partition("-")
    return int(first), int(last or first)


def _full_first(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """Return rows in the order of the table: an estimate comes after the full numbers that share a rank with it."""
    order = list(rows)
    for start in reversed(range(len(order))):
        for place in range(start, len(order) - 1):
            first, second = order[place : place + 2]
            is_tie = _ends(first.rank)[1] >= _ends(second.rank)[0]
            if not (is_tie and "robust" in first.estimates and "robust" not in second.estimates):
                break
            order[place : place + 2] = second, first
    return order
