"""Estimated runs: the random order of the samples for the second phase, and estimates with intervals from records.

An estimated run attacks all samples with the first phase of an attack. The samples that are still classified correctly
are the survivors. The second phase attacks only some survivors, which are drawn in a random order without replacement.
A sample is broken if an attack changes its correct prediction. The share of broken samples among the drawn survivors
gives an estimate for all survivors.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks.phases import Phases
from robustbench_vlm.core.finite_population import Population, share_bounds
from robustbench_vlm.core.records import SampleResult, mean_interval
from robustbench_vlm.engine.cell import Cell, Samples, Shard

CHUNK = 50
"""Number of drawn survivors that are attacked before the interval of the estimate is computed again."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class CellDraws:
    """Counts from the records of one cell (one model, attack, dataset and eps) of an estimated run."""

    samples: int
    """The number of samples of the cell."""
    survivors: int
    """The number of samples that survive the first phase and can be drawn. It is 0 if all samples were attacked in
    full."""
    drawn: int
    """The number of survivors that the second phase has attacked."""
    broken: int
    """The number of drawn survivors that are misclassified after the second phase."""
    robust: int = 0
    """The number of robust samples. It is 0 if some samples were not attacked in full."""

    @classmethod
    def of_records(cls, first: Sequence[SampleResult], second: Sequence[SampleResult]) -> "CellDraws":
        """Count samples in the records of the first phase (`first`) and of the drawn survivors (`second`)."""
        return cls(
            samples=len(first),
            survivors=sum(result.broken_by == "" for result in first),
            drawn=len(second),
            broken=sum(result.broken_by != "" for result in second),
        )

    @classmethod
    def of_complete(cls, results: Sequence[SampleResult]) -> "CellDraws":
        """Count samples in the records of a cell whose samples were all attacked in full."""
        return cls(len(results), 0, 0, 0, sum(result.broken_by == "" for result in results))


@dataclass(frozen=True)
class RobustEstimate:
    """An estimate of a robust accuracy. All values are in [0, 1]."""

    value: float
    full_attack: Interval
    """The design interval: the 95 % interval of the accuracy that the full attack gives on these samples."""
    new_samples: Interval
    """The 95 % interval of the accuracy on new samples of the same datasets. It covers the error of drawing survivors
    and the error of choosing the samples of the datasets."""

    @property
    def half_width(self) -> float:
        """Half the width of the design interval."""
        low, high = self.full_attack
        return (high - low) / 2


def estimate_mean(cells: Sequence[CellDraws], rates: Mapping[int, float] | None = None) -> RobustEstimate:
    """Return the estimate of the unweighted mean robust accuracy of one or several cells.

    `rates` is a result of `broken_rates`. By default, the rates are computed from `cells`.

    The design interval stays valid if it is computed after every draw and the run stops as soon as it is narrow. The
    module `core.finite_population` explains this.

    Cells with the same number of samples form one stratum, because their survivors have equal weights and are drawn in
    one random order. The interval for new samples combines the design interval and the interval of `mean_interval`
    around the estimate. The errors that the two intervals describe are independent. Therefore the squares of their
    lengths are added on each side of the estimate (MOVER, Zou and Donner 2008, doi:10.1002/sim.3095).
    """
    import numpy

    rates = rates or broken_rates(cells)
    strata = _strata(cells)
    population = Population(
        numpy.array([sum(cell.survivors for cell in own) for own in strata.values()]),
        numpy.array([1 / (len(cells) * samples) for samples in strata]),
    )
    low, high = share_bounds(
        population,
        [sum(cell.drawn for cell in own) for own in strata.values()],
        [sum(cell.broken for cell in own) for own in strata.values()],
    )
    unbroken = sum((cell.survivors + cell.robust) / cell.samples for cell in cells) / len(cells)
    full = unbroken - float(high), unbroken - float(low)
    shares = [(cell.survivors * (1 - rates[cell.samples]) + cell.robust) / cell.samples for cell in cells]
    value = min(max(sum(shares) / len(shares), full[0]), full[1])
    around = mean_interval(shares, [cell.samples for cell in cells])
    new = (
        value - math.hypot(value - full[0], max(value - around[0], 0.0)),
        value + math.hypot(full[1] - value, max(around[1] - value, 0.0)),
    )
    return RobustEstimate(value, full, (max(new[0], 0.0), min(new[1], 1.0)))


def broken_rates(cells: Sequence[CellDraws]) -> dict[int, float]:
    """Return the share of drawn survivors that the second phase broke, for each size of cells.

    The size of a cell is its number of samples. Only a few survivors of each cell are drawn, so one share is computed
    for all cells of the same size. If no survivor of these cells was drawn, the share of all cells is used. The keys
    are the sizes.
    """
    overall = _rate(cells) or 0.0
    rates = {samples: _rate(own) for samples, own in _strata(cells).items()}
    return {samples: overall if rate is None else rate for samples, rate in rates.items()}


def _rate(cells: Sequence[CellDraws]) -> float | None:
    drawn = sum(cell.drawn for cell in cells)
    return sum(cell.broken for cell in cells) / drawn if drawn else None


def _strata(cells: Sequence[CellDraws]) -> dict[int, list[CellDraws]]:
    """Return the cells grouped by their number of samples."""
    found: dict[int, list[CellDraws]] = {}
    for cell in cells:
        found.setdefault(cell.samples, []).append(cell)
    return found


def second_cell(cell: Cell, phases: Phases, first: Sequence[SampleResult]) -> Cell:
    """Return a cell for the second phase. Its samples are the survivors of `cell`, in the order of the draws.

    `first` has the records of the first phase in the order of the cell's samples.
    """
    own = cell.samples
    survivors = [place for place, result in enumerate(first) if result.broken_by == ""]
    places = sorted(survivors, key=lambda place: draw_time(cell.protocol.seed, cell.dataset.name, own.ids[place]))
    drawn = Samples(
        indices=tuple(own.indices[place] for place in places),
        ids=tuple(own.ids[place] for place in places),
        labels=tuple(own.labels[place] for place in places),
        image_digests=tuple(own.image_digests[place] for place in places),
    )
    return dataclasses.replace(cell, attack=phases.second, samples=drawn)


def draw_time(seed: int, dataset: str, sample_id: str) -> tuple[float, str]:
    """Return a random number and the sample id. Survivors with smaller numbers are drawn first.

    The number depends only on the seed of the protocol, the dataset and the sample id. It is exponentially distributed
    with mean 1. The sample id decides between equal numbers.
    """
    # Leaderboards import this module, but most of them need no draws and no torch.
    from robustbench_vlm.core.random import key_of

    word = key_of(seed, "draw", dataset, sample_id) % 2**52
    return -math.log((word + 1) / 2**52), sample_id


def draw_order(seed: int, survivors: Iterable[tuple[int, str, int, str]]) -> list[tuple[int, str]]:
    """Return the survivors in the order of their draws, each as the index of its cell and its sample id.

    `survivors` has the index of the cell, the dataset, the number of samples of the cell, and the sample id.

    Survivors are sorted by the number from `draw_time` times the number of samples of their cell. Within each cell, the
    order is therefore uniformly random. If all cells have the same number of samples, the order of all survivors is
    uniformly random too. If not, survivors of smaller cells tend to come earlier, because each of them has a larger
    weight in the mean.
    """
    times = [
        (count * draw_time(seed, dataset, sample_id)[0], sample_id, number)
        for number, dataset, count, sample_id in survivors
    ]
    return [(number, sample_id) for _, sample_id, number in sorted(times)]


def chunks(cells: Sequence[Cell], samples: Sequence[int], size: int = CHUNK) -> list[list[Shard]]:
    """Return the survivors to draw, in the order of their draws, in chunks of `size` survivors.

    `cells` are the results of `second_cell`. `samples` has the number of samples of each cell in the first phase.
    `draw_order` defines the order.
    """
    survivors = [
        (number, cell.dataset.name, count, sample_id)
        for number, (cell, count) in enumerate(zip(cells, samples, strict=True))
        for sample_id in cell.samples.ids
    ]
    order = [number for number, _ in draw_order(cells[0].protocol.seed, survivors)] if cells else []
    done = [0] * len(cells)
    found = []
    for first in range(0, len(order), size):
        counts = Counter(order[first : first + size])
        found.append(
            [
                Shard(number, done[number], done[number] + counts[number], cells[number].fingerprint)
                for number in sorted(counts)
            ]
        )
        for number, count in counts.items():
            done[number] += count
    return found
