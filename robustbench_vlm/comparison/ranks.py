"""Rank ranges of many models: paired tests only of the pairs whose result is not certain from the means.

The time and memory for the tests grow with the number of pairs of models with similar means. Tests of the other pairs
cannot change a rank, because their difference is significant for any verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustbench_vlm.comparison.statistics import (
    ALPHA,
    compare_means,
    discordant_counts,
    holm,
    rank_range,
    surely_different,
)

if TYPE_CHECKING:
    from numpy import bool_, float64, int64
    from numpy.typing import NDArray

_ROWS = 64
"""Number of models whose pairs are tested together. It bounds the memory."""
_ROUNDING = 1e-9
"""Tolerance for the rounding of means."""


@dataclass(frozen=True)
class Ranks:
    """Result of `rank_models`."""

    ranks: tuple[str, ...]
    """The rank of each model, such as "1", or a range such as "2-4", in the order of the input."""
    tested: int
    """Number of pairs of models that were tested. The other pairs differ significantly for any verdicts."""


def rank_models(verdicts: "Sequence[NDArray[bool_]]") -> Ranks:
    """Rank models by their unweighted mean accuracy over datasets.

    `verdicts` has a bool array [M, N] for each dataset: whether each of the M models classifies each of the N samples
    correctly. N may differ between datasets. Models share ranks if `compare_means` does not distinguish them. Its p
    values are corrected by Holm's method for all M * (M - 1) / 2 pairs of models.
    """
    import numpy

    sizes = [each.shape[1] for each in verdicts]
    count = len(verdicts[0])
    means = numpy.mean([each.mean(axis=1) for each in verdicts], axis=0)
    order = numpy.argsort(-means, kind="stable")
    ordered, falling = [each[order] for each in verdicts], means[order]
    pairs = count * (count - 1) // 2
    certain = surely_different(sizes, ALPHA / pairs) + _ROUNDING if pairs else 1.0
    # `ends[i]` is the index of the first model that is certainly worse than the model with the index i.
    ends = numpy.searchsorted(-falling, -falling + certain)
    first, second, difference, p = _test_near_pairs(ordered, sizes, ends)
    significant = holm(p) <= ALPHA
    worse = count - ends
    better = numpy.searchsorted(ends, numpy.arange(count), side="right")
    upper = numpy.where(difference > 0, first, second)[significant]
    lower = numpy.where(difference > 0, second, first)[significant]
    worse += numpy.bincount(upper, minlength=count)
    better += numpy.bincount(lower, minlength=count)
    ranks = [""] * count
    for place, index in enumerate(order):
        ranks[index] = rank_range(int(better[place]), int(worse[place]), count)
    return Ranks(tuple(ranks), len(p))


def _test_near_pairs(
    verdicts: "Sequence[NDArray[bool_]]", sizes: Sequence[int], ends: "NDArray[int64]"
) -> "tuple[NDArray[int64], NDArray[int64], NDArray[float64], NDArray[float64]]":
    """Test the pairs (i, j) with i < j < `ends[i]`. The models are sorted by their means.

    Returns the indices i and j, the differences of the means and the p values, each with one value for each pair.
    """
    import numpy

    found = []
    for start in range(0, len(ends), _ROWS):
        stop, last = min(start + _ROWS, len(ends)), int(ends[min(start + _ROWS, len(ends)) - 1])
        rows, columns = numpy.arange(start, stop)[:, None], numpy.arange(start, last)[None, :]
        near = (rows < columns) & (columns < ends[start:stop, None])
        counts = [discordant_counts(each[start:stop], each[start:last]) for each in verdicts]
        only_first, only_second = (numpy.stack([each[side][near] for each in counts], axis=1) for side in (0, 1))
        tests = compare_means(only_first, only_second, sizes)
        first, second = numpy.nonzero(near)
        found.append((first + start, second + start, tests.difference, tests.p))
    return tuple(numpy.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]
