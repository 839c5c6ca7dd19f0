"""Ranking: the entries of a track become its board, ordered by the worst number known of each."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.comparison.statistics import ALPHA, compare_means, enough_draws, holm, rank_ranges
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.engine.evidence import Evidence, Unreachable, Unsound
from robustbench_vlm.leaderboard.board import Board, Row
from robustbench_vlm.leaderboard.entry import Entry, entry_paths, read_entry
from robustbench_vlm.leaderboard.reported import read_reported
from robustbench_vlm.leaderboard.submit import missing
from robustbench_vlm.leaderboard.validate import check_entry
from robustbench_vlm.leaderboard.worst_known import Verdicts, accuracy, mean_without, worst_known
from robustbench_vlm.models.card import bundled_names
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Placed:
    """An entry with its checked records and what is known of its samples at the standard radius."""

    entry: Entry
    evidence: tuple[Evidence, ...]
    verdicts: Mapping[str, Verdicts]
    is_ranked: bool
    """Whether the track's attack was run on every dataset of the track, and nothing speaks against the entry."""


def read_standings(folder: Path, track: Track) -> tuple[list[Placed], dict[str, str]]:
    """Read and check all entries of a track's folder; also return, by model, why the records of others are not there.

    Raises UserError that names the entry that does not hold.
    """
    found, absent = [], {}
    for path in entry_paths(folder):
        entry = read_entry(path)
        if (entry.track, f"{entry.model}.json") != (track.name, path.name):
            raise Unsound(f"{path} is the entry of {entry.model!r} on {entry.track!r}: its place says otherwise")
        try:
            evidence = check_entry(entry, folder)
        except Unreachable as error:
            absent[entry.model] = str(error)
            continue
        verdicts = worst_known(evidence, entry.counterexamples, Threat(track.norm, track.standard_eps))
        if verdicts:
            is_ranked = entry.status != "disputed" and not missing(evidence, track)
            found.append(Placed(entry, evidence, verdicts, is_ranked))
    _check_together(found)
    return found, absent


def _check_together(found: Sequence[Placed]) -> None:
    """Raise Unsound where entries are of one name on disks that know no case, of one model, or of unlike samples."""
    names: dict[str, str] = {}
    weights: dict[str, str] = {}
    data: dict[str, tuple[str, str]] = {}
    for each in found:
        model = each.entry.model
        if (other := names.setdefault(model.casefold(), model)) != model:
            raise Unsound(f"the entries {other!r} and {model!r} have one name but for the case of letters")
        if (other := weights.setdefault(each.entry.weights, model)) != model:
            raise Unsound(f"the entries {other!r} and {model!r} are of the same weights: one model has one entry")
        for name, about in each.entry.datasets.items():
            digest, first = data.setdefault(name, (about["data"], model))
            if digest != about["data"]:
                raise Unsound(f"the entries of {first!r} and {model!r} are of other samples of {name!r}")


def make_board(track_name: str, folder: Path) -> Board:
    """Return the board of a track from the entries, and the papers' numbers, in a folder.

    Ranked are those that the track's attack was run on completely and that are not disputed; the others follow. An
    entry whose records cannot be had now has no row: what nobody can check does not count.
    """
    track: Track = TRACKS.load(track_name)
    standings, absent = read_standings(folder, track)
    ranked = sorted((each for each in standings if each.is_ranked), key=lambda each: _order(each, track))
    others = sorted((each for each in standings if not each.is_ranked), key=lambda each: _order(each, track))
    protocol = PROTOCOLS.load(track.board)
    threat = Threat(track.norm, track.standard_eps)
    return Board(
        track=track.name,
        description=track.description,
        protocol={"label": protocol.label, "identity": protocol.identity},
        attack=track.attack,
        norm=threat.norm,
        eps=threat.eps_text,
        datasets=track.datasets,
        seen=track.seen,
        rows=(*_ranked_rows(ranked, track), *(_row(each, track) for each in others)),
        absent=absent,
        reported=read_reported(folder),
    )


def _order(standing: Placed, track: Track) -> tuple[float, str]:
    return -_mean(standing, track, "robust"), standing.entry.model


def _mean(standing: Placed, track: Track, which: str) -> float:
    return mean_without(_strata(standing, which), track.seen).value


def _strata(standing: Placed, which: str) -> dict[str, Sequence[bool]]:
    return {name: getattr(verdicts, which) for name, verdicts in standing.verdicts.items()}


def _ranked_rows(ranked: Sequence[Placed], track: Track) -> list[Row]:
    apart = _told_apart(ranked, track)
    ranks = rank_ranges(
        [_mean(each, track, "robust") for each in ranked], lambda first, second: frozenset((first, second)) in apart
    )
    cleans = [_mean(each, track, "clean") for each in ranked]
    robusts = [_mean(each, track, "robust") for each in ranked]
    rows = []
    for standing, rank, clean, robust in zip(ranked, ranks, cleans, robusts, strict=True):
        clean_rank = 1 + sum(other > clean for other in cleans)
        difference = clean_rank - 1 - sum(other > robust for other in robusts)
        rows.append(_row(standing, track, rank, clean_rank, difference))
    return rows


def _told_apart(ranked: Sequence[Placed], track: Track) -> set[frozenset[int]]:
    """Return the pairs of places that paired tests of the mean tell apart; all have the protocol's samples."""
    pairs = list(combinations(range(len(ranked)), 2))
    strata = [_strata(each, "robust") for each in ranked]
    # Entries list their datasets in the order of their runs; a pair is of one dataset.
    robust = [[each[name] for name in track.datasets if name not in track.seen] for each in strata]
    draws = enough_draws(len(pairs))
    p = holm([compare_means(robust[first], robust[second], draws=draws).p for first, second in pairs])
    return {frozenset(pair) for pair, adjusted in zip(pairs, p, strict=True) if adjusted <= ALPHA}


def _row(standing: Placed, track: Track, rank: str = "", clean_rank: int = 0, difference: int = 0) -> Row:
    entry, card = standing.entry, standing.entry.card
    clean, robust = _strata(standing, "clean"), _strata(standing, "robust")
    return Row(
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
        clean=mean_without(clean, track.seen),
        robust=mean_without(robust, track.seen),
        under=_under(standing, track),
        curve=_curve(standing, track),
        datasets={name: {"clean": accuracy(clean[name]), "robust": accuracy(robust[name])} for name in clean},
        passes=sum(row.forward + row.backward for each in standing.evidence for row in each.results),
        warnings=_warnings(standing, track),
        counterexamples=len(entry.counterexamples),
        history=tuple(plain(event) for event in entry.history),
        records=plain(entry.records),
        command=_command(entry, track),
    )


def _fidelity(entry: Entry) -> str:
    """Return how near to its paper our recipe is, of a model that we trained by it; "" of all others."""
    defense = str(entry.card.get("defense", ""))
    if entry.model not in bundled_names(entry.track) or defense not in DEFENSES.names():
        return ""
    return str(DEFENSES.load(defense).fidelity)


def _training(training: Mapping[str, Any]) -> str:
    eps = str(training.get("eps", ""))
    radius = ""
    if eps:
        # What a card of others says may be anything.
        with contextlib.suppress(UserError):
            eps = Threat("Linf", parse_eps(eps)).eps_text
        radius = f"eps {eps}"
    return ", ".join(part for part in (str(training.get("dataset", "")), radius) if part)


def _under(standing: Placed, track: Track) -> dict[str, Any]:
    """Return the mean robust accuracy under each attack that was run on as many datasets as any at the radius."""
    cells = [each for each in standing.evidence if each.threat == Threat(track.norm, track.standard_eps)]
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
        attack: mean_without(found, track.seen) for attack, found in own.items() if set(found) == set(standing.verdicts)
    }


def _curve(standing: Placed, track: Track) -> tuple[CurvePoint, ...]:
    radii = sorted({each.threat.eps for each in standing.evidence if each.threat.norm == track.norm})
    points = []
    for eps in radii:
        threat = Threat(track.norm, eps)
        found = worst_known(standing.evidence, standing.entry.counterexamples, threat)
        if set(found) == set(standing.verdicts):
            robust = mean_without({name: verdicts.robust for name, verdicts in found.items()}, track.seen)
            points.append(CurvePoint(threat.eps_text, float(eps), robust))
    return tuple(points)


def _warnings(standing: Placed, track: Track) -> tuple[str, ...]:
    """Return the codes of the gates at the standard radius, each with its datasets."""
    cells = [each for each in standing.evidence if each.threat == Threat(track.norm, track.standard_eps)]
    pairs = {(code.partition(":")[0], each.score.dataset): None for each in cells for code in each.score.warnings}
    counts = Counter(code for code, _ in pairs)
    return tuple(f"{code}: {', '.join(name for other, name in pairs if other == code)}" for code in sorted(counts))


def _command(entry: Entry, track: Track) -> str:
    return f"vlmbench run --track {track.name} --model {entry.model} --protocol {track.board} --attack {track.attack}"
