"""Run requests: compute missing records, and compute scores from all records."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Sequence

from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.core.records import SampleResult, passes_of
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.compute import compute_missing
from robustbench_vlm.engine.cost import Estimate, estimate_cost, seconds_of
from robustbench_vlm.engine.estimated_run import EstimatedCell, cells_with_first_phase, run_phases
from robustbench_vlm.engine.estimated_tables import estimated_tables
from robustbench_vlm.engine.manifest import Provenance
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.results import Mean, RunResult, ScoreTable
from robustbench_vlm.engine.run_folders import RunFolders, scores_of
from robustbench_vlm.engine.run_times import record_run
from robustbench_vlm.engine.score_tables import tables_of, with_table_draws
from robustbench_vlm.engine.store import (
    Finished,
    cell_folder,
    locked,
    merge,
    read_finished,
    run_folder,
)
from robustbench_vlm.engine.warnings import black_box_breaks

__all__ = ["Mean", "RunResult", "ScoreTable", "run", "run_plan"]


def run(request: Request, *, on_progress: OnProgress = ignore_progress) -> RunResult:
    """Resolve a request, compute the missing records, and return the scores.

    If Ctrl-C or an error interrupts a run, call this function again with an equal request to continue it. Raises
    UserError in the cases in which `resolve` does. Also raises UserError if another run is writing to the folder, or if
    the records cannot be written.
    """
    engine: Engine = ENGINES.load(request.resources.engine)
    engine.prepare(request.resources)
    plan = resolve(request)
    # The estimate takes time, and only progress reports use it. It is skipped if progress is not reported.
    estimate = None if on_progress is ignore_progress else estimate_cost(plan)
    return run_plan(plan, estimate, on_progress=on_progress)


def run_plan(plan: Plan, estimate: Estimate | None = None, *, on_progress: OnProgress = ignore_progress) -> RunResult:
    """Compute the missing records of a resolved request, and return the scores. `run` lists the errors.

    If `estimate` is not given, the first progress report says that 0 seconds are left.
    """
    begun = time.monotonic()
    out, cells = plan.request.out, plan.cells
    with contextlib.ExitStack() as locks:
        for folder in sorted({run_folder(out, cell) for cell in cells}):
            locks.enter_context(locked(folder))
        finished = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        folders = RunFolders(plan)
        # If the run is interrupted, the scores of complete cells must be kept.
        folders.write_unfinished(finished)
        started, fresh = time.monotonic(), [0] * len(cells)
        if half_width := plan.request.half_width:
            estimated = run_phases(plan, half_width, estimate, on_progress=on_progress)
            fresh = [each.fresh for each in estimated]
            finished = [read_finished(cell_folder(out, cell), cell) for cell in cells]
            if not all(each.is_finished for each in estimated):
                folders.write_unfinished(finished)
                _record(plan, estimate, fresh, time.monotonic() - started)
                return _estimated(plan, estimated, time.monotonic() - begun, folders.notes)
        elif halfway := cells_with_first_phase(plan):
            continued = run_phases(dataclasses.replace(plan, cells=halfway), half_width=0.0, on_progress=on_progress)
            spent = {each.cell.fingerprint: each.fresh for each in continued}
            fresh = [spent.get(cell.fingerprint, 0) for cell in cells]
            finished = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        seconds_expected = estimate.seconds_expected if estimate else 0.0
        others = compute_missing(plan, finished, seconds_expected, on_progress, folders.write_unfinished)
        fresh = [first + second for first, second in zip(fresh, others, strict=True)]
        _record(plan, estimate, fresh, time.monotonic() - started)
        complete = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        results = [merge(found.pieces, cell.samples.ids) for found, cell in zip(complete, cells, strict=True)]
        scores = scores_of(cells, results)
        passes = [passes_of(rows) for rows in results]
        seconds = time.monotonic() - begun
        folders.write(
            Provenance("complete", plan.request.command, plan.request.resources, seconds, sum(passes)), scores
        )
    tables = tables_of(plan, scores, passes, [seconds * passed / max(sum(fresh), 1) for passed in fresh])
    return RunResult(
        tables=with_table_draws(plan, tables, results),
        seconds=seconds,
        passes=sum(passes),
        warnings=(*_rejections(finished), *folders.notes, *_too_few(plan), *_black_box_notes(cells, results)),
    )


def _record(plan: Plan, estimate: Estimate | None, fresh: Sequence[int], seconds: float) -> None:
    """Record the time of the passes that this call made for each cell. Later estimates use it."""
    if estimate:
        predicted = sum(seconds_of(cost, passes) for cost, passes in zip(estimate.cells, fresh, strict=True))
        record_run(plan.request.resources, predicted / estimate.time_ratio, seconds)


def _estimated(plan: Plan, cells: Sequence[EstimatedCell], seconds: float, notes: Sequence[str]) -> RunResult:
    """Return the result of an estimated run in which some survivors were not drawn."""
    tables = estimated_tables(plan, cells, seconds)
    return RunResult(tables, seconds, sum(table.passes for table in tables), (*notes, *_too_few(plan)))


def _too_few(plan: Plan) -> list[str]:
    """Return a sentence for each dataset with fewer samples than the request asks for."""
    asked = plan.request.samples
    if not isinstance(asked, int):
        return []
    sizes = {cell.dataset.name: len(cell) + len(cell.samples.unreadable) for cell in plan.cells}
    return [f"{name} has only {size} samples, {asked} were asked for" for name, size in sizes.items() if size < asked]


def _black_box_notes(cells: Sequence[Cell], results: Sequence[Sequence[SampleResult]]) -> list[str]:
    """Return a sentence for each cell with samples that only a black-box stage broke, even if they raise no warning."""
    notes = []
    for cell, rows in zip(cells, results, strict=True):
        broken, left = black_box_breaks(cell.attack, [row.broken_by for row in rows])
        if broken:
            notes.append(f"{cell.label}: black-box stages broke {broken} of {left} samples that the stages before left")
    return notes


def _rejections(finished: Iterable[Finished]) -> list[str]:
    return [f"{path} was ignored: {why}" for found in finished for path, why in found.rejected]
