"""Scores and tables of estimated runs."""

import dataclasses
from collections.abc import Mapping, Sequence

from robustbench_vlm.core.records import Accuracy, Score, passes_of
from robustbench_vlm.engine.estimate import CellDraws, Interval, broken_rates, estimate_mean
from robustbench_vlm.engine.estimated_run import EstimatedCell
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.results import Mean, ScoreTable, TableEstimate, score
from robustbench_vlm.engine.score_tables import groups, is_unseen, tables_of


def estimated_tables(plan: Plan, cells: Sequence[EstimatedCell], seconds: float) -> tuple[ScoreTable, ...]:
    """Return one table for every combination of model, attack and eps.

    `cells` has the records of each cell of the plan, and `seconds` is the wall time of the run. Tables with only
    complete records have no estimate.
    """
    scores = []
    for numbers in groups(plan.cells):
        rates = broken_rates([cells[number].draws for number in numbers])
        scores += [_score(cells[number], rates) for number in numbers]
    passes = [_passes(each) for each in cells]
    share = seconds / max(sum(passes), 1)
    tables = tables_of(plan, scores, passes, [share * each for each in passes])
    return tuple(
        _with_estimate(plan, table, [cells[number] for number in numbers])
        for table, numbers in zip(tables, groups(plan.cells), strict=True)
    )


def _score(found: EstimatedCell, rates: Mapping[int, float]) -> Score:
    """Return the score of a cell. If not all survivors were drawn, its robust accuracy is an estimate."""
    if found.is_finished:
        return score(found.cell, found.results)
    estimate = estimate_mean([found.draws], rates)
    return score(found.cell, found.results, Accuracy(estimate.value, *estimate.new_samples, len(found.cell)))


def _passes(found: EstimatedCell) -> int:
    return passes_of(found.complete) if found.complete else passes_of(found.first) + passes_of(found.second)


def _with_estimate(plan: Plan, table: ScoreTable, cells: Sequence[EstimatedCell]) -> ScoreTable:
    """Return the table with the estimated means and their intervals."""
    if all(each.is_finished for each in cells):
        return table
    draws = [each.draws for each in cells]
    drawn, survivors = sum(each.drawn for each in draws), sum(each.survivors for each in draws)
    second = sum(passes_of(each.second) for each in cells)
    left = round((survivors - drawn) * second / drawn) if drawn else 0
    mean, design = _mean(table.mean, [each.draws for each in cells if is_unseen(plan, each.cell.dataset.name)])
    as_published, design_as_published = _mean(table.mean_as_published, draws)
    return dataclasses.replace(
        table,
        mean=mean,
        mean_as_published=as_published,
        estimate=TableEstimate(
            survivors=survivors,
            drawn=drawn,
            broken=sum(each.broken for each in draws),
            passes_full=table.passes + left,
            scores=tuple(estimate_mean([each]).full_attack for each in draws),
            mean=design,
            mean_as_published=design_as_published,
        ),
    )


def _mean(counted: Mean | None, cells: Sequence[CellDraws]) -> tuple[Mean | None, Interval | None]:
    """Return `counted` with the estimated robust accuracy, and the design interval.

    If `counted` is None, both results are None.
    """
    if counted is None:
        return None, None
    estimate = estimate_mean(cells)
    found = dataclasses.replace(counted, robust=estimate.value, robust_interval=estimate.new_samples)
    return found, estimate.full_attack
