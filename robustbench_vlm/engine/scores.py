"""Scores: accuracies with Wilson intervals (Wilson 1927), derived from sample results and nothing else."""

from collections.abc import Sequence
from typing import Any

from robustbench_vlm.core.records import CLEAN, SampleResult, Score, wilson
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.warnings import cell_warnings


def score(cell: Cell, results: Sequence[SampleResult]) -> Score:
    """Return a cell's score with the warnings that its own samples give reason for."""
    return Score(
        model=cell.model_name,
        attack=cell.attack.name,
        dataset=cell.dataset.name,
        classes=len(cell.dataset.classes),
        eps=cell.threat.eps_text,
        warnings=cell_warnings(cell, results),
        **accuracies(results),
    )


def accuracies(results: Sequence[SampleResult]) -> dict[str, Any]:
    """Return n, clean and robust with their intervals, under the names that they have in `Score`.

    Robust is what is right when clean and that no stage broke.
    """
    n = len(results)
    clean = sum(result.broken_by != CLEAN for result in results)
    robust = sum(result.broken_by == "" for result in results)
    return {
        "n": n,
        "clean": clean / n,
        "robust": robust / n,
        "clean_interval": wilson(clean, n),
        "robust_interval": wilson(robust, n),
    }
