"""Run requests: compute the records that are missing on disk, and compute scores from all records."""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import SampleResult, Score
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import sound_cells
from robustbench_vlm.engine.cost import Estimate, estimate_cost
from robustbench_vlm.engine.manifest import ManifestRow, Provenance, write_manifest
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.results import Mean, RunResult, ScoreTable, mean_of, score
from robustbench_vlm.engine.shard import missing_groups, run_group
from robustbench_vlm.engine.store import (
    Finished,
    cell_folder,
    locked,
    merge,
    read_finished,
    run_folder,
    write_shard,
)
from robustbench_vlm.engine.warnings import with_comparisons

__all__ = ["Mean", "RunResult", "ScoreTable", "run", "run_plan"]


def run(request: Request, *, on_progress: OnProgress = ignore_progress) -> RunResult:
    """Resolve a request, compute the records that are missing on disk, and return the scores.

    Raises UserError as `resolve` does, if another run is writing to the folder, and if the records cannot be written.
    If a run is interrupted by Ctrl-C or an error, the same request continues it.
    """
    engine: Engine = ENGINES.load(request.resources.engine)
    engine.prepare(request.resources)
    plan = resolve(request)
    # The estimate takes time, and it is needed only for the progress report.
    estimate = None if on_progress is ignore_progress else estimate_cost(plan)
    return run_plan(plan, estimate, on_progress=on_progress)


def run_plan(plan: Plan, estimate: Estimate | None = None, *, on_progress: OnProgress = ignore_progress) -> RunResult:
    """Run a resolved request as `run` does. Without an `estimate`, the first progress report gives 0 seconds left."""
    begun = time.monotonic()
    out, cells = plan.request.out, plan.cells
    with contextlib.ExitStack() as locks:
        for folder in sorted({run_folder(out, cell) for cell in cells}):
            locks.enter_context(locked(folder))
        finished = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        _write_manifests(plan, Provenance("unfinished", plan.request.command, plan.request.resources, 0, 0))
        seconds_expected = estimate.seconds_expected if estimate else 0.0
        fresh = _compute(plan, finished, seconds_expected, on_progress)
        complete = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        results = [merge(found.pieces, cell.samples.ids) for found, cell in zip(complete, cells, strict=True)]
        scores = with_comparisons(cells, [score(cell, rows) for cell, rows in zip(cells, results, strict=True)])
        passes = [_passes(rows) for rows in results]
        seconds = time.monotonic() - begun
        made = Provenance("complete", plan.request.command, plan.request.resources, seconds, sum(passes))
        _write_manifests(plan, made, scores)
    return RunResult(
        tables=_tables(plan, scores, passes, [seconds * passed / max(sum(fresh), 1) for passed in fresh]),
        seconds=seconds,
        passes=sum(passes),
        warnings=tuple(_rejections(finished)),
    )


def _compute(plan: Plan, finished: Sequence[Finished], seconds_expected: float, on_progress: OnProgress) -> list[int]:
    """Compute the missing records, write each shard when it is done, and return the number of passes for each cell."""
    resources = plan.request.resources
    groups = missing_groups(plan.cells, finished, resources)
    todo = sum(map(len, groups))
    known = sum(_passes(piece.results) for found in finished for piece in found.pieces)
    fresh = [0] * len(plan.cells)
    left = seconds_expected * todo / plan.samples
    on_progress(Progress(plan.samples - todo, plan.samples, left, passes=known))
    begun, done = time.monotonic(), 0
    function = functools.partial(run_group, plan.cells, resources)
    engine: Engine = ENGINES.load(resources.engine)
    with contextlib.closing(engine.run_jobs(function, groups, resources)) as answers:
        for group, answer in answers:
            for shard, results in zip(group.shards, answer, strict=True):
                cell = plan.cells[shard.cell]
                write_shard(cell_folder(plan.request.out, cell), shard, results)
                fresh[shard.cell] += _passes(results)
            done += len(group)
            left = (time.monotonic() - begun) / done * (todo - done)
            passes = known + sum(fresh)
            on_progress(Progress(plan.samples - todo + done, plan.samples, left, cell.label, passes))
    return fresh


def _passes(results: Iterable[SampleResult]) -> int:
    return sum(result.forward + result.backward for result in results)


def _write_manifests(plan: Plan, made: Provenance, scores: Sequence[Score] = ()) -> None:
    """Write the manifest of every run folder of a plan, with scores if they are given."""
    lines: dict[Path, list[ManifestRow]] = {}
    for cell, cell_score in itertools.zip_longest(plan.cells, scores):
        folder = run_folder(plan.request.out, cell)
        lines.setdefault(folder, []).append(ManifestRow(cell, cell_folder(plan.request.out, cell).name, cell_score))
    for folder, listed in lines.items():
        write_manifest(folder, listed, made, sound_cells(folder, {row.folder for row in listed}))


def _tables(
    plan: Plan, scores: Sequence[Score], passes: Sequence[int], seconds: Sequence[float]
) -> tuple[ScoreTable, ...]:
    """Return one table for every combination of model, attack and eps."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for number, cell in enumerate(plan.cells):
        rows.setdefault((cell.model_name, cell.attack.name, cell.threat.eps_text), []).append(number)
    return tuple(_table(plan, numbers, scores, passes, seconds) for numbers in rows.values())


def _table(
    plan: Plan, numbers: Sequence[int], scores: Sequence[Score], passes: Sequence[int], seconds: Sequence[float]
) -> ScoreTable:
    first: Cell = plan.cells[numbers[0]]
    own = tuple(scores[number] for number in numbers)
    unseen = [score for score in own if score.dataset not in plan.track.training_datasets]
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


def _rejections(finished: Iterable[Finished]) -> list[str]:
    return [f"{path} was ignored: {why}" for found in finished for path, why in found.rejected]
