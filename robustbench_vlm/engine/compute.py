"""Compute the missing records of a plan with an execution engine, and write them shard by shard."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.records import passes_of
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.shard import run_group
from robustbench_vlm.engine.shard_groups import missing_groups
from robustbench_vlm.engine.store import Finished, cell_folder, read_finished, write_shard


def compute_missing(
    plan: Plan,
    finished: Sequence[Finished],
    seconds_expected: float,
    on_progress: OnProgress,
    on_complete: Callable[[Sequence[Finished]], None],
) -> list[int]:
    """Compute the missing records, and return the number of passes for each cell.

    Each shard (a file with the records of some samples of a cell) is written when it is finished. After the last shard
    of a cell, `on_complete` is called with the records of all cells.

    `seconds_expected` is the estimated wall time of the whole plan, in seconds. The progress reports start with this
    estimate, and the measured time replaces it as samples are finished.
    """
    resources = plan.request.resources
    groups = missing_groups(plan.cells, finished, resources)
    todo = sum(map(len, groups))
    known = sum(passes_of(piece.results) for found in finished for piece in found.pieces)
    fresh = [0] * len(plan.cells)
    on_disk = list(finished)
    missing = [missing_samples(cell, found) for cell, found in zip(plan.cells, finished, strict=True)]
    expected = seconds_expected / plan.samples
    on_progress(Progress(plan.samples - todo, plan.samples, expected * todo, passes=known))
    begun, done = time.monotonic(), 0
    function = functools.partial(run_group, plan.cells, resources)
    engine: Engine = ENGINES.load(resources.engine)
    with contextlib.closing(engine.run_jobs(function, groups, resources)) as answers:
        for group, answer in answers:
            completed = False
            for shard, results in zip(group.shards, answer, strict=True):
                cell = plan.cells[shard.cell]
                write_shard(cell_folder(plan.request.out, cell), shard, results)
                fresh[shard.cell] += passes_of(results)
                if missing[shard.cell]:
                    missing[shard.cell] -= set(range(shard.start, shard.stop))
                    if not missing[shard.cell]:
                        on_disk[shard.cell] = read_finished(cell_folder(plan.request.out, cell), cell)
                        completed = True
            done += len(group)
            if completed:
                on_complete(on_disk)
            left = seconds_left(expected, done, todo, time.monotonic() - begun)
            passes = known + sum(fresh)
            on_progress(Progress(plan.samples - todo + done, plan.samples, left, cell.label, passes))
    return fresh


def seconds_left(expected: float, done: int, todo: int, spent: float) -> float:
    """Return the estimated seconds until `todo` samples are finished, if `done` samples took `spent` seconds.

    `expected` is the estimated time of one sample in seconds, or 0 if there is no estimate. At the start, workers have
    unfinished samples, so the measured time of a sample is too long. The estimate therefore counts as a tenth of all
    samples.
    """
    weight = 0.1 * todo if expected else 0.0
    return (weight * expected + spent) / (weight + done) * (todo - done)


def later(on_progress: OnProgress, seconds: float) -> OnProgress:
    """Return a function for progress reports of the first part of a run. It adds the time of the later part."""
    return lambda progress: on_progress(dataclasses.replace(progress, seconds_left=progress.seconds_left + seconds))


def missing_samples(cell: Cell, found: Finished) -> set[int]:
    """Return the positions of the samples of a cell that still lack a record."""
    return set(range(len(cell))).difference(*(range(piece.start, piece.stop) for piece in found.pieces))
