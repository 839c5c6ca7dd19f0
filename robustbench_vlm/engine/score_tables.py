"""The tables of a run: one for every combination of model, attack and eps."""

import dataclasses
from collections.abc import Sequence

from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import SampleResult, Score
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.fresh_draws import table_draws
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.results import ScoreTable, mean_of
from robustbench_vlm.engine.store import run_folder


def is_unseen(plan: Plan, dataset: str) -> bool:
    """Return whether no model of the plan's track was trained on a dataset."""
    return dataset not in plan.track.training_datasets


def tables_of(
    plan: Plan, scores: Sequence[Score], passes: Sequence[int], seconds: Sequence[float]
) -> tuple[ScoreTable, ...]:
    """Return one table for every combination of model, attack and eps."""
    return tuple(_table(plan, numbers, scores, passes, seconds) for numbers in groups(plan.cells))


def with_table_draws(
    plan: Plan, tables: Sequence[ScoreTable], results: Sequence[Sequence[SampleResult]]
) -> tuple[ScoreTable, ...]:
    """Return the tables with their accuracies over fresh draws. `results` has the records of each cell of the plan.

    If the protocol does not have draws, the tables are returned unchanged.
    """
    found = []
    for each, numbers in zip(tables, groups(plan.cells), strict=True):
        records = {plan.cells[number].dataset.name: results[number] for number in numbers}
        unseen = [name for name in records if is_unseen(plan, name)]
        found.append(dataclasses.replace(each, draws=table_draws(plan.protocol, records, unseen)))
    return tuple(found)


def groups(cells: Sequence[Cell]) -> list[list[int]]:
    """Return the indices of the cells of each model, attack and eps, in the order of the cells."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for number, cell in enumerate(cells):
        found.setdefault((cell.model_name, cell.attack.name, cell.threat.eps_text), []).append(number)
    return list(found.values())


def _table(
    plan: Plan, numbers: Sequence[int], scores: Sequence[Score], passes: Sequence[int], seconds: Sequence[float]
) -> ScoreTable:
    first: Cell = plan.cells[numbers[0]]
    own = tuple(scores[number] for number in numbers)
    unseen = [score for score in own if is_unseen(plan, score.dataset)]
    published = set(plan.protocol.datasets or plan.track.datasets)
    is_whole = not plan.protocol.missing_datasets and {score.dataset for score in own} == published
    return ScoreTable(
        track=plan.track.name,
        protocol=plan.protocol.label,
        model=first.model_name,
        attack=first.attack.name,
        norm=first.threat.norm,
        eps=first.threat.eps_text,
        fingerprint=fingerprint([plan.cells[number].fingerprint for number in numbers]),
        scores=own,
        mean=mean_of(unseen),
        mean_as_published=mean_of(own) if is_whole and len(unseen) < len(own) else None,
        seconds=sum(seconds[number] for number in numbers),
        passes=sum(passes[number] for number in numbers),
        folder=run_folder(plan.request.out, first),
        fingerprints=tuple(plan.cells[number].fingerprint for number in numbers),
    )
