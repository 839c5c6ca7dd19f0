"""The manifests of the run folders of a plan, from the start of a run to its end."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_vlm.core.records import SampleResult, Score
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import sound_cells
from robustbench_vlm.engine.compute import missing_samples
from robustbench_vlm.engine.manifest import ManifestCell, ManifestRow, Provenance, write_manifest
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.results import score
from robustbench_vlm.engine.store import Finished, cell_folder, merge, run_folder
from robustbench_vlm.engine.warnings import with_comparisons


def scores_of(cells: Sequence[Cell], results: Sequence[Sequence[SampleResult]]) -> list[Score]:
    """Return the scores of cells with complete records, with all warnings."""
    return with_comparisons(cells, [score(cell, rows) for cell, rows in zip(cells, results, strict=True)])


class RunFolders:
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
        """Notes about cells of earlier commands that this run removed from a manifest. Each note is a sentence."""
        for folder, numbers in self._rows.items():
            self._earlier[folder], notes = sound_cells(folder, {self._names[number] for number in numbers})
            self.notes += notes

    def write_unfinished(self, on_disk: Sequence[Finished]) -> None:
        """Write the manifests of a run in progress. Cells with complete records have scores."""
        cells = self._plan.cells
        complete = [
            n for n, (cell, found) in enumerate(zip(cells, on_disk, strict=True)) if not missing_samples(cell, found)
        ]
        results = [merge(on_disk[number].pieces, cells[number].samples.ids) for number in complete]
        known = dict(zip(complete, scores_of([cells[number] for number in complete], results), strict=True))
        request = self._plan.request
        made = Provenance("unfinished", request.command, request.resources, 0, 0)
        self.write(made, [known.get(number) for number in range(len(cells))])

    def write(self, made: Provenance, scores: Sequence[Score | None]) -> None:
        """Write the manifests. `scores` has one score per cell of the plan. The score of an unfinished cell is None."""
        for folder, numbers in self._rows.items():
            rows = [ManifestRow(self._plan.cells[n], self._names[n], scores[n], self._images) for n in numbers]
            write_manifest(folder, rows, made, self._earlier[folder])
