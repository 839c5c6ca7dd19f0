"""Predict the cost of an estimated run from the cost of the full run."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.phases import divide
from robustbench_vlm.engine.cost import BROKEN_COST, ROBUST_SHARE, Cost, Estimate
from robustbench_vlm.engine.estimate import CHUNK, CellDraws, estimate_mean
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.score_tables import groups

BROKEN_LATER = 0.01
"""Assumed share of the survivors of the first phase that the second phase breaks. For five of the eight bundled models
it is between 0.4 and 1.3 % at 5/255 (`benchmarks/estimated_runs.json`)."""


@dataclass(frozen=True)
class EstimatedCost:
    """The expected cost of computing an estimated run from the start."""

    passes: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    seconds: float
    """Wall time in seconds with all workers."""


def estimated_cost(plan: Plan, full: Estimate) -> EstimatedCost:
    """Return the expected cost of an estimated run of a plan. The half-width in its request must be positive.

    `full` is the cost of the full run. Raises UserError if an attack cannot be divided into phases.
    """
    half_width = plan.request.half_width
    passes, seconds = 0.0, 0.0
    for numbers in groups(plan.cells):
        cells = [plan.cells[number] for number in numbers]
        share = drawn_share([len(cell) for cell in cells], half_width)
        for cell, number in zip(cells, numbers, strict=True):
            cost: Cost = full.cells[number]
            first = _first_share(cell.attack, len(cell.dataset.classes))
            used = ROBUST_SHARE * (first + share * (1 - first)) + (1 - ROBUST_SHARE) * BROKEN_COST
            passes += cost.passes_most * used
            seconds += cost.seconds_most * used
    return EstimatedCost(round(passes), seconds)


def drawn_share(samples: Sequence[int], half_width: float) -> float:
    """Return the expected share of survivors to draw until the half-width of the interval is at most `half_width`.

    The interval is for the mean accuracy over datasets. `samples` has the number of samples of each dataset. The
    function assumes that the share `ROBUST_SHARE` survives the first phase, and that the second phase breaks the share
    `BROKEN_LATER` of the survivors.
    """
    survivors = [max(round(count * ROBUST_SHARE), 1) for count in samples]
    total, drawn = sum(survivors), 0
    while drawn < total:
        drawn = min(drawn + CHUNK, total)
        cells = [
            CellDraws(count, left, min(round(drawn * left / total), left), round(drawn * left / total * BROKEN_LATER))
            for count, left in zip(samples, survivors, strict=True)
        ]
        if estimate_mean(cells).half_width <= half_width:
            break
    return drawn / total


def _first_share(attack: Attack, num_classes: int) -> float:
    """Return the passes of the first phase, divided by the passes of both phases, for a sample that survives both."""
    first, second = (_passes(phase, num_classes) for phase in (divide(attack).first, divide(attack).second))
    return first / (first + second)


def _passes(attack: Attack, num_classes: int) -> int:
    calls = [stage.calls(stage.parameters, num_classes) for stage in attack.stages]
    return sum(without + 2 * gradients for without, gradients in calls)
