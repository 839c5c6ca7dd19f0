"""Predict the cost of an estimated run from the cost of the full run."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.phases import divide
from robustbench_vlm.engine.cost import START_SECONDS, Cost, Estimate
from robustbench_vlm.engine.estimate import CHUNK, CellDraws, estimate_mean
from robustbench_vlm.engine.probe import UNKNOWN_SHARE
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.score_tables import groups

BROKEN_LATER, BROKEN_RANGE = 0.008, (0.002, 0.03)
"""Assumed share of the survivors of the first phase that the second phase breaks, and its range. At 5/255, the share is
between 0.4 and 1.5 % for six of the eight bundled models (`benchmarks/estimated_runs.json`). The assumed share is
smaller than their median of 1.0 %, because some orders of the draws stop earlier than the expected outcomes do."""


@dataclass(frozen=True)
class EstimatedCost:
    """The expected cost of computing an estimated run from the start."""

    passes: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    passes_range: tuple[int, int]
    """In nine of ten cases, the number of passes is in this range."""
    first_seconds: float
    """Wall time in seconds of the first phase, with all workers."""
    second_seconds: float
    seconds_range: tuple[float, float]
    """In nine of ten cases, the wall time of both phases is in this range. `Estimate.seconds_range` has the
    assumptions."""

    @property
    def seconds(self) -> float:
        """Wall time in seconds of both phases."""
        return self.first_seconds + self.second_seconds


def estimated_cost(plan: Plan, full: Estimate) -> EstimatedCost:
    """Return the expected cost of an estimated run of a plan. The half-width in its request must be positive.

    `full` is the cost of the full run. Raises UserError if an attack cannot be divided into phases.
    """
    first, second = _passes_of_phases(plan, full, BROKEN_LATER)
    passes = sum(first) + sum(second)
    ends = [sum(map(sum, _passes_of_phases(plan, full, broken))) for broken in BROKEN_RANGE]
    # The robustness of the model, the share of survivors that break, and the time of a pass have independent errors.
    robust = [math.log(end / full.passes_expected) for end in full.passes_range]
    factors = [math.hypot(one, math.log(end / passes)) for one, end in zip(robust, ends, strict=True)]
    times = [
        math.log(end / full.seconds_expected) for end in (full.seconds_range[0], full.seconds_range[1] - START_SECONDS)
    ]
    low, high = (math.hypot(time, math.log(end / passes)) for time, end in zip(times, ends, strict=True))
    first_seconds, second_seconds = (
        sum(cost.seconds_most * each / cost.passes_most for cost, each in zip(full.cells, phase, strict=True))
        for phase in (first, second)
    )
    seconds = first_seconds + second_seconds
    return EstimatedCost(
        passes=round(passes),
        passes_range=(round(passes * math.exp(-factors[0])), round(passes * math.exp(factors[1]))),
        first_seconds=first_seconds,
        second_seconds=second_seconds,
        seconds_range=(seconds * math.exp(-low), seconds * math.exp(high) + START_SECONDS),
    )


def _passes_of_phases(plan: Plan, full: Estimate, broken: float) -> tuple[list[float], list[float]]:
    """Return the passes of each cell in the first and in the second phase.

    `broken` is the share of survivors that the second phase breaks.
    """
    first, second = [0.0] * len(plan.cells), [0.0] * len(plan.cells)
    for numbers in groups(plan.cells):
        cells = [plan.cells[number] for number in numbers]
        robust = sum(full.cells[number].robust_expected for number in numbers) / len(numbers)
        share = drawn_share([len(cell) for cell in cells], plan.request.half_width, robust, broken)
        for cell, number in zip(cells, numbers, strict=True):
            cost: Cost = full.cells[number]
            cheap = _first_share(cell.attack, len(cell.dataset.classes))
            survivors = cost.robust_expected * cost.passes_most
            first[number] = survivors * cheap + max(cost.passes_expected - survivors, 0.0)
            second[number] = survivors * share * (1 - cheap)
    return first, second


def drawn_share(
    samples: Sequence[int], half_width: float, robust: float = UNKNOWN_SHARE, broken: float = BROKEN_LATER
) -> float:
    """Return the expected share of survivors to draw until the half-width of the interval is at most `half_width`.

    The interval is for the mean accuracy over datasets. `samples` has the number of samples of each dataset. The
    function assumes that the share `robust` survives the first phase, and that the second phase breaks the share
    `broken` of the survivors.
    """
    survivors = [max(round(count * robust), 1) for count in samples]
    total, drawn = sum(survivors), 0
    while drawn < total:
        drawn = min(drawn + CHUNK, total)
        draws, breaks = _spread(drawn, survivors), _spread(round(drawn * broken), survivors)
        cells = [CellDraws(*each) for each in zip(samples, survivors, draws, breaks, strict=True)]
        if estimate_mean(cells).half_width <= half_width:
            break
    return drawn / total


def _spread(count: int, sizes: Sequence[int]) -> list[int]:
    """Divide a count into integers that are nearly proportional to `sizes` and whose sum is `count`."""
    ends = [round(count * sum(sizes[:stop]) / sum(sizes)) for stop in range(len(sizes) + 1)]
    return [high - low for low, high in itertools.pairwise(ends)]


def _first_share(attack: Attack, num_classes: int) -> float:
    """Return the passes of the first phase, divided by the passes of both phases, for a sample that survives both."""
    first, second = (_passes(phase, num_classes) for phase in (divide(attack).first, divide(attack).second))
    return first / (first + second)


def _passes(attack: Attack, num_classes: int) -> int:
    calls = [stage.calls(stage.parameters, num_classes) for stage in attack.stages]
    return sum(without + 2 * gradients for without, gradients in calls)
