"""Scores: accuracies with Wilson intervals (Wilson 1927), derived from sample results and nothing else."""

from collections.abc import Sequence

from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.gates import cell_warnings
from robustbench_vlm.records import CLEAN, SampleResult, Score


def score(cell: Cell, results: Sequence[SampleResult]) -> Score:
    """Return a cell's score with the warnings that its own samples give reason for.

    Robust is what is right when clean and that no stage broke.
    """
    n = len(results)
    clean = sum(result.broken_by != CLEAN for result in results)
    robust = sum(result.broken_by == "" for result in results)
    return Score(
        model=cell.model_name,
        attack=cell.attack.name,
        dataset=cell.dataset.name,
        classes=len(cell.dataset.classes),
        eps=cell.threat.eps_text,
        n=n,
        clean=clean / n,
        robust=robust / n,
        clean_interval=wilson(clean, n),
        robust_interval=wilson(robust, n),
        warnings=cell_warnings(cell, results),
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
