"""Compute the missing records of a plan with an execution engine, and write them shard by shard."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence

from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.records import passes_of
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.shard import missing_groups, run_group
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
    """
    resources = plan.request.resources
    groups = missing_groups(plan.cells, finished, resources)
    todo = sum(map(len, groups))
    known = sum(passes_of(piece.results) for found in finished for piece in found.pieces)
    fresh = [0] * len(plan.cells)
    on_disk = list(finished)
    missing = [missing_samples(cell, found) for cell, found in zip(plan.cells, finished, strict=True)]
    left = seconds_expected * todo / plan.samples
    on_progress(Progress(plan.samples - todo, plan.samples, left, passes=known))
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
            left = (time.monotonic() - begun) / done * (todo - done)
            passes = known + sum(fresh)
            on_progress(Progress(plan.samples - todo + done, plan.samples, left, cell.label, passes))
    return fresh


def missing_samples(cell: Cell, found: Finished) -> set[int]:
    """Return the positions of the samples of a cell that still lack a record."""
    return set(range(len(cell))).difference(*(range(piece.start, piece.stop) for piece in found.pieces))
