"""Run requests: compute missing records, and compute scores from all records."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import SampleResult, Score
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import sound_cells
from robustbench_vlm.engine.cost import Estimate, estimate_cost
from robustbench_vlm.engine.manifest import ManifestCell, ManifestRow, Provenance, write_manifest
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

    Without an `estimate`, the first progress report gives 0 seconds left.
    """
    begun = time.monotonic()
    out, cells = plan.request.out, plan.cells
    with contextlib.ExitStack() as locks:
        for folder in sorted({run_folder(out, cell) for cell in cells}):
            locks.enter_context(locked(folder))
        finished = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        folders = _RunFolders(plan)
        # If the run is interrupted, the scores of complete cells must be kept.
        folders.write_unfinished(finished)
        seconds_expected = estimate.seconds_expected if estimate else 0.0
        fresh = _compute(plan, finished, seconds_expected, on_progress, folders.write_unfinished)
        complete = [read_finished(cell_folder(out, cell), cell) for cell in cells]
        results = [merge(found.pieces, cell.samples.ids) for found, cell in zip(complete, cells, strict=True)]
        scores = _scores(cells, results)
        passes = [_passes(rows) for rows in results]
        seconds = time.monotonic() - begun
        folders.write(
            Provenance("complete", plan.request.command, plan.request.resources, seconds, sum(passes)), scores
        )
    return RunResult(
        tables=_tables(plan, scores, passes, [seconds * passed / max(sum(fresh), 1) for passed in fresh]),
        seconds=seconds,
        passes=sum(passes),
        warnings=(*_rejections(finished), *folders.notes),
    )


def _compute(
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
    known = sum(_passes(piece.results) for found in finished for piece in found.pieces)
    fresh = [0] * len(plan.cells)
    on_disk = list(finished)
    missing = [_missing(cell, found) for cell, found in zip(plan.cells, finished, strict=True)]
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
                fresh[shard.cell] += _passes(results)
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


def _passes(results: Iterable[SampleResult]) -> int:
    return sum(result.forward + result.backward for result in results)


def _missing(cell: Cell, found: Finished) -> set[int]:
    """Return the positions of the samples of a cell that still lack a record."""
    return set(range(len(cell))).difference(*(range(piece.start, piece.stop) for piece in found.pieces))


def _scores(cells: Sequence[Cell], results: Sequence[Sequence[SampleResult]]) -> list[Score]:
    """Return the scores of cells with complete records, with all warnings."""
    return with_comparisons(cells, [score(cell, rows) for cell, rows in zip(cells, results, strict=True)])


class _RunFolders:
    """The manifests of the run folders of a plan. The folders must be locked."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._images = str(plan.request.images.resolve()) if plan.request.images else ""
        self._rows: dict[Path, list[int]] = {}
        for number, cell in enumerate(plan.cells):
            self._rows.setdefault(run_folder(plan.request.out, cell), []).append(number)
        self._names = [cell_folder(plan.request.out, cell).name for cell in plan.cells]
        self._earlier: dict[Path, dict[str, ManifestCell]] = {}
        self.notes: list[str] = []
        """Notes about cells of earlier commands that were removed from a manifest. Each note is a sentence."""
        for folder, numbers in self._rows.items():
            self._earlier[folder], notes = sound_cells(folder, {self._names[number] for number in numbers})
            self.notes += notes

    def write_unfinished(self, on_disk: Sequence[Finished]) -> None:
        """Write the manifests of a run in progress. Cells with complete records have scores."""
        cells = self._plan.cells
        complete = [n for n, (cell, found) in enumerate(zip(cells, on_disk, strict=True)) if not _missing(cell, found)]
        results = [merge(on_disk[number].pieces, cells[number].samples.ids) for number in complete]
        known = dict(zip(complete, _scores([cells[number] for number in complete], results), strict=True))
        request = self._plan.request
        made = Provenance("unfinished", request.command, request.resources, 0, 0)
        self.write(made, [known.get(number) for number in range(len(cells))])

    def write(self, made: Provenance, scores: Sequence[Score | None]) -> None:
        """Write the manifests. `scores` has one score per cell of the plan. The score of an unfinished cell is None."""
        for folder, numbers in self._rows.items():
            rows = [ManifestRow(self._plan.cells[n], self._names[n], scores[n], self._images) for n in numbers]
            write_manifest(folder, rows, made, self._earlier[folder])


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
