"""Run the two phases of an estimated run.

The first phase attacks all samples. The second phase attacks samples that survived the first, until the confidence
interval of the accuracy is narrow enough. The module `engine.estimate` explains the draws and the intervals. Each phase
has its own folder of records, next to the folders of complete records. When the second phase has attacked all
survivors, complete records are written.
"""

import contextlib
import dataclasses
import functools
import itertools
import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.attacks.phases import Phases, divide, stages_passed
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress, in_step
from robustbench_vlm.core.records import UNFINISHED, SampleResult, passes_of
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.compute import compute_missing, later, missing_samples
from robustbench_vlm.engine.cost import Estimate
from robustbench_vlm.engine.estimate import CellDraws, chunks, draw_order, estimate_mean, second_cell
from robustbench_vlm.engine.estimated_cost import drawn_share, estimated_cost
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.score_tables import groups, is_unseen
from robustbench_vlm.engine.second_phase import joined, run_second_phase
from robustbench_vlm.engine.shard_groups import ShardGroup
from robustbench_vlm.engine.store import (
    Finished,
    cell_folder,
    merge,
    missing_ranges,
    read_finished,
    write_shard,
)

_NOTHING = Finished((), ())


@dataclass(frozen=True)
class EstimatedCell:
    """The records of a cell in an estimated run."""

    cell: Cell
    complete: tuple[SampleResult, ...]
    """The records of the whole attack, in the order of the samples. () if they are not complete."""
    first: tuple[SampleResult, ...] = ()
    """The records of the first phase, in the order of the samples."""
    second: tuple[SampleResult, ...] = ()
    """The records of the drawn survivors, in the order of the draws."""
    stage: str = ""
    """The name of the first stage of the second phase."""
    fresh: int = 0
    """Number of passes that `run_phases` made for the cell."""

    @property
    def draws(self) -> CellDraws:
        """The numbers of survivors, draws and broken samples."""
        if self.complete:
            return CellDraws.of_complete(self.complete)
        return CellDraws.of_records(self.first, self.second)

    @property
    def results(self) -> list[SampleResult]:
        """The records of all samples. Survivors that were not drawn have the verdict "not finished"."""
        if self.complete:
            return list(self.complete)
        drawn = {each.sample_id: each for each in self.second}
        open_first = (
            each if each.broken_by else dataclasses.replace(each, broken_by=UNFINISHED) for each in self.first
        )
        return [
            joined(each, drawn[each.sample_id], self.stage) if each.sample_id in drawn else each for each in open_first
        ]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that attacked each sample, as `stages_passed` writes them. () if all samples are finished."""
        if self.is_finished:
            return ()
        drawn = {each.sample_id for each in self.second}
        identities = [stage.identity for stage in self.cell.attack.stages]
        return tuple(stages_passed(identities, each.broken_by, both=each.sample_id in drawn) for each in self.results)

    @property
    def is_finished(self) -> bool:
        """True if the second phase has attacked all survivors."""
        return bool(self.complete) or self.draws.drawn == self.draws.survivors


def run_phases(
    plan: Plan, half_width: float, estimate: Estimate | None = None, *, on_progress: OnProgress = ignore_progress
) -> list[EstimatedCell]:
    """Run both phases for the cells without complete records, and return the cells.

    The run folders must be locked. For each model, attack and eps, survivors are attacked until half of the width of
    the design interval of the mean over datasets is at most `half_width`, in [0, 1]. With 0, all survivors are
    attacked, and complete records are written. `estimate` is the cost of the full run, for progress reports. Raises
    UserError if an attack cannot be divided into phases.
    """
    out = plan.request.out
    cost = estimated_cost(plan, estimate) if estimate and half_width else None
    first_seconds, second_seconds = (cost.first_seconds, cost.second_seconds) if cost else (0.0, 0.0)
    phases = [divide(cell.attack) for cell in plan.cells]
    on_disk = [read_finished(cell_folder(out, cell), cell) for cell in plan.cells]
    missing = [number for number, cell in enumerate(plan.cells) if missing_samples(cell, on_disk[number])]
    tables = groups(plan.cells)
    report = in_step(later(on_progress, second_seconds), 1, 1 + len(tables))
    firsts = dict(zip(missing, _first_phase(plan, phases, missing, first_seconds, report), strict=True))
    cells: list[EstimatedCell] = []
    for number, (cell, found) in enumerate(zip(plan.cells, on_disk, strict=True)):
        if number in firsts:
            stage = phases[number].second.stages[0].name
            first, fresh = firsts[number]
            cells.append(EstimatedCell(cell, (), first, stage=stage, fresh=fresh))
        else:
            cells.append(EstimatedCell(cell, tuple(merge(found.pieces, cell.samples.ids))))
    for step, numbers in enumerate(tables, start=2):
        report = in_step(on_progress, step, 1 + len(tables))
        own = _second_phase(plan, phases[numbers[0]], [cells[n] for n in numbers], half_width, report)
        for number, each in zip(numbers, own, strict=True):
            cells[number] = each
    return [_completed(plan, each) for each in cells]


def read_phases(folder: Path, cells: Sequence[Cell]) -> list[EstimatedCell]:
    """Read the records of both phases of cells of one model, attack and eps that have no complete records.

    `folder` is the run folder. Cells whose first phase is not complete are left out. If a run was killed while it wrote
    drawn survivors, only the survivors before the first missing one are kept.
    """
    found = [each for cell in cells if (each := _read_phases(folder, cell))]
    order = draw_order(
        cells[0].protocol.seed, _survivors([each.cell for each in found], [each.first for each in found])
    )
    drawn = {(number, each.sample_id) for number, cell in enumerate(found) for each in cell.second}
    kept = set(itertools.takewhile(drawn.__contains__, order))
    return [
        dataclasses.replace(cell, second=tuple(each for each in cell.second if (number, each.sample_id) in kept))
        for number, cell in enumerate(found)
    ]


def _survivors(
    cells: Sequence[Cell], firsts: Sequence[Sequence[SampleResult]]
) -> Generator[tuple[int, str, int, str], None, None]:
    for number, (cell, first) in enumerate(zip(cells, firsts, strict=True)):
        for each in first:
            if each.broken_by == "":
                yield number, cell.dataset.name, len(cell), each.sample_id


def _read_phases(folder: Path, cell: Cell) -> EstimatedCell | None:
    phases = divide(cell.attack)
    first = _first_cell(cell, phases)
    found = read_finished(folder / cell_folder(Path(), first).name, first)
    if missing_samples(first, found):
        return None
    results = tuple(merge(found.pieces, cell.samples.ids))
    second = second_cell(cell, phases, results)
    drawn = _drawn(read_finished(folder / cell_folder(Path(), second).name, second))
    return EstimatedCell(cell, (), results, tuple(drawn), phases.second.stages[0].name)


def cells_with_first_phase(plan: Plan) -> tuple[Cell, ...]:
    """Return the cells without complete records for which an estimated run has left records of the first phase."""
    out = plan.request.out
    found = []
    for cell in plan.cells:
        with contextlib.suppress(UserError):  # the attack has no phases
            is_started = cell_folder(out, _first_cell(cell, divide(cell.attack))).is_dir()
            if is_started and missing_samples(cell, read_finished(cell_folder(out, cell), cell)):
                found.append(cell)
    return tuple(found)


def _first_phase(
    plan: Plan, phases: Sequence[Phases], numbers: Sequence[int], seconds: float, on_progress: OnProgress
) -> list[tuple[tuple[SampleResult, ...], int]]:
    """Attack all samples of some cells with the first phase.

    Returns the records of each cell, and the number of passes that were made for it.

    `seconds` is the estimated time of the first phase of all cells of the plan.
    """
    out = plan.request.out
    cells = tuple(_first_cell(plan.cells[number], phases[number]) for number in numbers)
    if not cells:
        return []
    some = dataclasses.replace(plan, cells=cells)
    on_disk = [read_finished(cell_folder(out, cell), cell) for cell in cells]
    fresh = compute_missing(some, on_disk, seconds * some.samples / plan.samples, on_progress, _nothing)
    found = (read_finished(cell_folder(out, cell), cell) for cell in cells)
    records = [tuple(merge(each.pieces, cell.samples.ids)) for each, cell in zip(found, cells, strict=True)]
    return list(zip(records, fresh, strict=True))


def _first_cell(cell: Cell, phases: Phases) -> Cell:
    return dataclasses.replace(cell, attack=phases.first)


def _nothing(finished: Sequence[Finished]) -> None:
    """Do nothing. This callback is for the first phase, whose scores are not written to a manifest."""


def _second_phase(
    plan: Plan, phases: Phases, cells: Sequence[EstimatedCell], half_width: float, on_progress: OnProgress
) -> list[EstimatedCell]:
    """Attack survivors of cells of one model, attack and eps until the interval is narrow enough.

    Return the cells with their records. Chunks of survivors are written in the order of the draws. Therefore the
    records do not depend on the number of workers or on interruptions.
    """
    open_cells = [number for number, each in enumerate(cells) if not each.complete]
    seconds = [second_cell(cells[n].cell, phases, cells[n].first) for n in open_cells]
    order = chunks(seconds, [len(cells[n].cell) for n in open_cells])
    out, resources = plan.request.out, plan.request.resources
    found = [list(_drawn(read_finished(cell_folder(out, cell), cell))) for cell in seconds]
    fresh = [0] * len(seconds)

    def state(done: int) -> list[EstimatedCell]:
        updated = list(cells)
        for place, number in enumerate(open_cells):
            stop = max((each.stop for chunk in order[:done] for each in chunk if each.cell == place), default=0)
            spent = cells[number].fresh + fresh[place]
            updated[number] = dataclasses.replace(cells[number], second=tuple(found[place][:stop]), fresh=spent)
        return updated

    def is_enough(done: int) -> bool:
        return done == len(order) or (half_width > 0 and _widest(plan, state(done)) <= half_width)

    done = next(n for n, chunk in enumerate([*order, None]) if chunk is None or not _is_on_disk(chunk, found))
    finished = next((n for n in range(done + 1) if is_enough(n)), None)
    if finished is not None:
        return state(finished)
    function = functools.partial(run_second_phase, tuple(seconds), phases, resources)
    jobs = [ShardGroup(tuple(chunk)) for chunk in order[done:]]
    engine: Engine = ENGINES.load(resources.engine)
    samples = sum(len(cell) for cell in seconds)
    share = drawn_share([len(each.cell) for each in cells], half_width) if half_width else 1.0
    begun, before = time.monotonic(), done
    with contextlib.closing(engine.run_jobs(function, jobs, resources)) as answers:
        for job, answer in _in_order(jobs, answers):
            for shard, results in zip(job.shards, answer, strict=True):
                write_shard(cell_folder(out, seconds[shard.cell]), shard, results)
                found[shard.cell][shard.start : shard.stop] = results
                fresh[shard.cell] += passes_of(results)
            done += 1
            width, drawn = _widest(plan, state(done)), sum(map(len, found))
            is_last = done == len(order) or (half_width > 0 and width <= half_width)
            # More survivors are needed than expected if the interval is still too wide.
            expected = drawn if is_last else max(round(share * samples), drawn + sum(map(len, order[done])))
            per_sample = (time.monotonic() - begun) / sum(map(len, jobs[: done - before]))
            label = f"second phase, interval of plus or minus {width * 100:.1f} points"
            on_progress(Progress(drawn, expected, per_sample * (expected - drawn), label, sum(fresh)))
            if is_last:
                break
    return state(done)


def _drawn(finished: Finished) -> list[SampleResult]:
    """Return the records of the second phase in the order of the draws, up to the first missing record."""
    results: list[SampleResult] = []
    for piece in finished.pieces:
        if piece.start != len(results):
            break
        results += piece.results
    return results


def _is_on_disk(chunk: Sequence[Shard], found: Sequence[Sequence[SampleResult]]) -> bool:
    return all(each.stop <= len(found[each.cell]) for each in chunk)


def _in_order(
    jobs: Sequence[ShardGroup], answers: Generator[tuple[ShardGroup, list[list[SampleResult]]], None, None]
) -> Generator[tuple[ShardGroup, list[list[SampleResult]]], None, None]:
    """Yield the answers in the order of the jobs. An answer is held back until all earlier jobs have answered."""
    waiting: dict[ShardGroup, list[list[SampleResult]]] = {}
    upcoming = iter(jobs)
    following = next(upcoming, None)
    for job, answer in answers:
        waiting[job] = answer
        while following in waiting:
            yield following, waiting.pop(following)
            following = next(upcoming, None)


def _widest(plan: Plan, cells: Sequence[EstimatedCell]) -> float:
    """Return half the width of the widest interval among the mean accuracies that the table shows."""
    unseen = [each for each in cells if is_unseen(plan, each.cell.dataset.name)]
    return max(estimate_mean([each.draws for each in group]).half_width for group in (unseen, list(cells)) if group)


def _completed(plan: Plan, found: EstimatedCell) -> EstimatedCell:
    """If all survivors have been attacked, write complete records and remove the records of the two phases."""
    if found.complete or not found.is_finished:
        return found
    out, cell, results = plan.request.out, found.cell, found.results
    for start, stop in missing_ranges(len(cell), _NOTHING, plan.request.resources.shard_size):
        shard = Shard(0, start, stop, cell.fingerprint)
        write_shard(cell_folder(out, cell), shard, results[start:stop])
    phases = divide(cell.attack)
    for each in (_first_cell(cell, phases), second_cell(cell, phases, found.first)):
        shutil.rmtree(cell_folder(out, each), ignore_errors=True)
    return dataclasses.replace(found, complete=tuple(results))
