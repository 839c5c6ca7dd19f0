"""Estimated runs: the order in which survivors are drawn, and estimates with intervals from the records.

An estimated run attacks all samples with the first phase of an attack. It attacks only some of the survivors with the
second phase. They are drawn in a random order without replacement, so their share of broken samples gives an estimate
for all survivors.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustbench_vlm.attacks.phases import Phases
from robustbench_vlm.core.finite_population import Population, failure_rates, share_bounds
from robustbench_vlm.core.random import key_of
from robustbench_vlm.core.records import CLEAN, SampleResult, mean_interval
from robustbench_vlm.engine.cell import Cell, Samples

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

CHUNK = 50
"""Number of survivors that are attacked before the interval is computed again."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class CellDraws:
    """The records of one cell (one model, attack, dataset and eps) of an estimated run."""

    samples: int
    """The number of samples of the cell."""
    correct: int
    """The number of samples with a correct clean prediction."""
    survivors: int
    """The number of samples that survive the first phase and can be drawn. 0 if all records are complete."""
    drawn: int
    """The number of survivors that the second phase has attacked."""
    broken: int
    """The number of drawn survivors that the second phase broke."""
    robust: int = 0
    """The number of robust samples, if all records are complete. If not, 0."""

    @classmethod
    def of_records(cls, first: Sequence[SampleResult], second: Sequence[SampleResult]) -> "CellDraws":
        """Return the counts for the records of the first phase and of the drawn survivors."""
        return cls(
            samples=len(first),
            correct=sum(result.broken_by != CLEAN for result in first),
            survivors=sum(result.broken_by == "" for result in first),
            drawn=len(second),
            broken=sum(result.broken_by != "" for result in second),
        )

    @classmethod
    def of_complete(cls, results: Sequence[SampleResult]) -> "CellDraws":
        """Return the counts for the complete records of a cell."""
        correct = sum(result.broken_by != CLEAN for result in results)
        return cls(len(results), correct, 0, 0, 0, sum(result.broken_by == "" for result in results))


@dataclass(frozen=True)
class Draws:
    """A range of the survivors of one cell, in the order in which they are drawn."""

    cell: int
    """Index of the cell."""
    start: int
    stop: int


@dataclass(frozen=True)
class RobustEstimate:
    """An estimate of a robust accuracy. All values are in [0, 1]."""

    value: float
    full_attack: Interval
    """The design interval: the 95 % interval of the accuracy that the full attack gives on these samples."""
    new_samples: Interval
    """The 95 % interval of the accuracy on other samples of the same datasets. It contains both sources of error."""

    @property
    def half_width(self) -> float:
        """Half the width of the design interval."""
        low, high = self.full_attack
        return (high - low) / 2


def estimate_mean(cells: Sequence[CellDraws]) -> RobustEstimate:
    """Return the estimate of the unweighted mean robust accuracy of cells. For one cell, it is that of the cell.

    The design interval holds at all times at once, see `core.finite_population`. The interval for new samples combines
    the design interval and the interval of `mean_interval` around the estimate. They describe independent errors, so
    the squares of their lengths are added on each side (MOVER, Zou and Donner 2008, doi:10.1002/sim.3095).
    """
    import numpy

    population, drawn, broken = population_of(cells)
    low, high = (float(bound) for bound in share_bounds(population, drawn, broken))
    rates = failure_rates(population, drawn, broken)
    unbroken = sum((cell.survivors + cell.robust) / cell.samples for cell in cells) / len(cells)
    value = unbroken - float((population.weights * population.sizes * rates).sum())
    full = unbroken - high, unbroken - low
    value = min(max(value, full[0]), full[1])
    shares = [
        (cell.survivors * (1 - rate) + cell.robust) / cell.samples for cell, rate in zip(cells, rates, strict=True)
    ]
    around = mean_interval([float(numpy.clip(share, 0, 1)) for share in shares], [cell.samples for cell in cells])
    new = (
        value - math.hypot(value - full[0], max(value - around[0], 0.0)),
        value + math.hypot(full[1] - value, max(around[1] - value, 0.0)),
    )
    return RobustEstimate(value, full, (max(new[0], 0.0), min(new[1], 1.0)))


def population_of(cells: Sequence[CellDraws]) -> tuple[Population, "NDArray[int64]", "NDArray[int64]"]:
    """Return the survivors of cells as a population, with the numbers of drawn and of broken survivors, int64 [H].

    The weight of a survivor is its share in the unweighted mean accuracy over the H cells.
    """
    import numpy

    sizes, drawn, broken = (
        numpy.array([getattr(cell, name) for cell in cells], dtype=numpy.int64)
        for name in ("survivors", "drawn", "broken")
    )
    weights = numpy.array([1 / (len(cells) * cell.samples) for cell in cells])
    return Population(sizes, weights), drawn, broken


def second_cell(cell: Cell, phases: Phases, first: Sequence[SampleResult]) -> Cell:
    """Return the cell of the second phase. Its samples are the survivors, in the order in which they are drawn.

    `first` has the records of the first phase in the order of the cell's samples.
    """
    own = cell.samples
    survivors = [place for place, result in enumerate(first) if result.broken_by == ""]
    places = sorted(survivors, key=lambda place: draw_time(cell, own.ids[place]))
    drawn = Samples(
        indices=tuple(own.indices[place] for place in places),
        ids=tuple(own.ids[place] for place in places),
        labels=tuple(own.labels[place] for place in places),
        image_digests=tuple(own.image_digests[place] for place in places),
    )
    return dataclasses.replace(cell, attack=phases.second, samples=drawn)


def draw_time(cell: Cell, sample_id: str) -> tuple[float, str]:
    """Return the time at which a survivor of a cell is drawn, relative to the number of samples of the cell.

    The time depends only on the seed of the protocol, the dataset and the sample id. It is exponentially distributed
    with the mean 1. The sample id decides between equal times.
    """
    word = key_of(cell.protocol.seed, "draw", cell.dataset.name, sample_id) % 2**52
    return -math.log((word + 1) / 2**52), sample_id


def chunks(cells: Sequence[Cell], samples: Sequence[int], size: int = CHUNK) -> list[list[Draws]]:
    """Return the draws of the second phase in order, in chunks of `size` survivors.

    `cells` are the cells of the second phase, and `samples` are the numbers of samples of the whole cells. Each draw
    time is multiplied by the number of samples of the cell. Each start of the order is therefore a simple random sample
    of the survivors of each cell. If all cells have the same number of samples, it is also one of all survivors. If
    not, survivors of smaller cells come earlier, because they have larger weights in the mean.
    """
    times = [
        (count * time, name, number)
        for number, (cell, count) in enumerate(zip(cells, samples, strict=True))
        for time, name in (draw_time(cell, each) for each in cell.samples.ids)
    ]
    order = [number for _, _, number in sorted(times)]
    done = [0] * len(cells)
    found = []
    for first in range(0, len(order), size):
        counts = Counter(order[first : first + size])
        found.append([Draws(number, done[number], done[number] + counts[number]) for number in sorted(counts)])
        for number, count in counts.items():
            done[number] += count
    return found
