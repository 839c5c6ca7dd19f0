"""Estimated numbers of an entry: compute them from the records of unfinished cells, and check them.

A cell (one attack, dataset and radius) is unfinished if an estimated run did not attack all survivors of the first
phase in full. `engine.estimate` explains the draws and the intervals.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import EstimatedAccuracy, SampleResult, Verdict, passes_of
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords, Condition, Unsound
from robustbench_vlm.engine.estimate import CellDraws, RobustEstimate, broken_rates, draw_order, estimate_mean
from robustbench_vlm.leaderboard.entry import Entry, EntryCell, EntryEstimate, EntryThreat, MeanEstimate

_TOLERANCE = 1e-6
"""Largest difference of two accuracies or interval ends that counts as rounding on another machine."""


@dataclass(frozen=True)
class GroupEstimate:
    """The estimates of one attack and threat."""

    mean: EstimatedAccuracy
    """The mean over the datasets that no model of the track was trained on."""
    cells: Mapping[str, EstimatedAccuracy]
    """The estimate of each unfinished cell. The keys are dataset names."""


def draws_of(cell: CellRecords) -> CellDraws:
    """Count the survivors, the drawn survivors and the broken drawn survivors of a cell."""
    if not cell.stages:
        return CellDraws.of_complete(cell.results)
    drawn = [result for result, is_drawn in zip(cell.results, cell.drawn, strict=True) if is_drawn]
    return CellDraws(
        samples=len(cell.results),
        survivors=len(drawn) + len(_unfinished(cell)),
        drawn=len(drawn),
        broken=sum(result.verdict is Verdict.BROKEN for result in drawn),
    )


def _unfinished(cell: CellRecords) -> list[SampleResult]:
    return [result for result in cell.results if result.verdict is Verdict.UNFINISHED]


def estimated_groups(evidence: Iterable[CellRecords]) -> dict[tuple[str, Threat], list[CellRecords]]:
    """Return the cells of each attack and threat that have an unfinished cell."""
    groups: dict[tuple[str, Threat], list[CellRecords]] = {}
    for each in evidence:
        groups.setdefault((each.score.attack, each.threat), []).append(each)
    return {group: cells for group, cells in groups.items() if any(each.stages for each in cells)}


def estimate_group(cells: Sequence[CellRecords], seen: Sequence[str]) -> GroupEstimate:
    """Return the estimates of the cells of one attack and threat.

    `seen` has the datasets for training. They are left out of the mean, unless the cells have no other dataset.
    """
    draws = {each.score.dataset: draws_of(each) for each in cells}
    rates = broken_rates(list(draws.values()))
    unseen = [each for each in cells if each.score.dataset not in seen] or list(cells)
    per_draw = _passes_per_draw(cells)
    mean = estimate_mean([draws[each.score.dataset] for each in unseen])
    return GroupEstimate(
        mean=_accuracy(mean, unseen, per_draw),
        cells={
            each.score.dataset: _accuracy(estimate_mean([draws[each.score.dataset]], rates), [each], per_draw)
            for each in cells
            if each.stages
        },
    )


def cell_estimates(evidence: Sequence[CellRecords]) -> list[EstimatedAccuracy | None]:
    """Return the estimate of each cell, or None for a finished cell."""
    found = {
        (*group, name): accuracy
        for group, cells in estimated_groups(evidence).items()
        for name, accuracy in estimate_group(cells, ()).cells.items()
    }
    return [found.get((each.score.attack, each.threat, each.score.dataset)) for each in evidence]


def _accuracy(estimate: RobustEstimate, cells: Sequence[CellRecords], per_draw: Fraction) -> EstimatedAccuracy:
    draws = [draws_of(each) for each in cells]
    survivors, drawn = sum(each.survivors for each in draws), sum(each.drawn for each in draws)
    passes = sum(passes_of(each.results) for each in cells)
    return EstimatedAccuracy(
        estimate.value,
        *estimate.new_samples,
        n=sum(each.samples for each in draws),
        full_attack=estimate.full_attack,
        survivors=survivors,
        drawn=drawn,
        broken=sum(each.broken for each in draws),
        passes=passes,
        passes_full=passes + round((survivors - drawn) * per_draw),
    )


def _passes_per_draw(cells: Sequence[CellRecords]) -> Fraction:
    """Return the mean number of passes of the second phase for a drawn survivor.

    In the first phase, a drawn survivor has as many passes as the mean of the survivors of its cell that are not
    finished.
    """
    second, drawn = Fraction(0), 0
    for cell in cells:
        own = [result for result, is_drawn in zip(cell.results, cell.drawn, strict=False) if is_drawn]
        if own:
            waiting = _unfinished(cell)
            second += passes_of(own) - len(own) * Fraction(passes_of(waiting), len(waiting))
            drawn += len(own)
    return second / drawn if drawn else Fraction(0)


def entry_estimate(accuracy: EstimatedAccuracy) -> EntryEstimate:
    """Return the counts and the design interval of an estimate in the form of an entry."""
    names = [field.name for field in dataclasses.fields(EntryEstimate)]
    return EntryEstimate(**{name: getattr(accuracy, name) for name in names})


def mean_estimates(evidence: Iterable[CellRecords], seen: Sequence[str]) -> tuple[MeanEstimate, ...]:
    """Return the mean of each attack and threat with an unfinished cell."""
    found = []
    for (attack, threat), cells in estimated_groups(evidence).items():
        mean = estimate_group(cells, seen).mean
        interval = mean.low, mean.high
        found.append(MeanEstimate(attack, EntryThreat(**plain(threat)), mean.value, interval, entry_estimate(mean)))
    return tuple(found)


def check_estimates(entry: Entry, evidence: Sequence[CellRecords], seed: int, seen: Sequence[str]) -> None:
    """Check the estimates of an entry against its records.

    `seed` is the seed of the protocol, which decides the order of the draws. Raises Unsound if an estimate does not
    follow from the records, or if the drawn survivors are not the first ones in the order.
    """
    for (attack, threat), cells in estimated_groups(evidence).items():
        about = f"{entry.model!r} / {attack} / {threat}"
        _check_order(cells, seed, about)
    for cell, expected in zip(entry.cells, cell_estimates(evidence), strict=True):
        _check_cell(entry, cell, expected)
    if not _is_close(plain(entry.estimates), plain(mean_estimates(evidence, seen))):
        raise Unsound(
            f"the estimated means of {entry.model!r} do not follow from the records: submit the run again, which"
            " computes them"
        )


def _check_order(cells: Sequence[CellRecords], seed: int, about: str) -> None:
    """Raise Unsound if the drawn survivors of cells of one attack and threat are not the first ones in the order."""
    survivors, drawn = [], set()
    for number, cell in enumerate(cells):
        # The field `drawn` is empty for finished cells, which have no survivors to draw.
        for result, is_drawn in zip(cell.results, cell.drawn, strict=False):
            if is_drawn or result.verdict is Verdict.UNFINISHED:
                survivors.append((number, cell.score.dataset, len(cell.results), result.sample_id))
            if is_drawn:
                drawn.add((number, result.sample_id))
    order = draw_order(seed, survivors)
    first = set(itertools.islice(order, len(drawn)))
    if wrong := sorted(drawn - first):
        number, sample = wrong[0]
        raise Unsound(
            f"{about}: the sample {cells[number].score.dataset} / {sample} was attacked in full, but {len(drawn)} were"
            f" drawn and it is not one of the first {len(drawn)} survivors of the order that the protocol defines: run"
            " all datasets in one command with --half-width, and submit this run"
        )


def _check_cell(entry: Entry, cell: EntryCell, expected: EstimatedAccuracy | None) -> None:
    is_same = _is_close(plain(cell.estimate), plain(entry_estimate(expected)) if expected else None)
    if is_same and expected:
        stated = [cell.score.robust, *cell.score.robust_interval]
        is_same = _is_close(stated, [expected.value, expected.low, expected.high])
    if not is_same:
        raise Unsound(
            f"{entry.model!r} / {cell.attack} / {cell.dataset} / {cell.threat.eps}: the estimate does not follow from"
            " the records: submit the run again, which computes it"
        )


def _is_close(first: object, second: object) -> bool:
    """Return whether two JSON values are equal up to rounding of their floats."""
    if isinstance(first, float) and isinstance(second, float | int):
        return math.isclose(first, second, rel_tol=0, abs_tol=_TOLERANCE)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_close(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_is_close, first, second))
    return first == second


def draws_of_evidence(evidence: Iterable[CellRecords]) -> dict[Condition, float]:
    """Return `draws_by_condition` of the records of cells."""
    return draws_by_condition((each.condition, sum(each.drawn) if each.stages else None) for each in evidence)


def draws_of_entry(entry: Entry) -> dict[Condition, float]:
    """Return `draws_by_condition` of the cells of an entry."""
    return draws_by_condition((each.condition, each.estimate.drawn if each.estimate else None) for each in entry.cells)


def draws_by_condition(cells: Iterable[tuple[Condition, int | None]]) -> dict[Condition, float]:
    """Return the number of drawn survivors under the attack and threat of each cell, and infinity for a finished cell.

    `cells` has the condition of each cell and its number of drawn survivors, or None for a finished cell.
    """
    found = list(cells)
    totals: Counter[tuple[str, str, Fraction]] = Counter()
    for (attack, _, norm, eps), drawn in found:
        totals[attack, norm, eps] += drawn or 0
    return {
        (attack, dataset, norm, eps): math.inf if drawn is None else totals[attack, norm, eps]
        for (attack, dataset, norm, eps), drawn in found
    }


def weaker_conditions(draws: Mapping[Condition, float], earlier: Entry) -> set[Condition]:
    """Return the conditions of estimates that must not replace a number of an earlier entry.

    `draws` is the result of `draws_by_condition`. An estimate must not replace a full number or an estimate with more
    draws. If it could, authors could choose the number that is highest by chance.
    """
    before = draws_of_entry(earlier)
    return {condition for condition, drawn in draws.items() if drawn < before.get(condition, -1)}
