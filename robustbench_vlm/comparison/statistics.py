"""Paired statistics of two models on the same samples: McNemar's test, bootstrap of the means, Holm's correction.

A paired test uses only the samples that exactly one of the two models classifies correctly. Therefore a paired test can
find a difference even if the intervals of the two accuracies overlap (Dietterich 1998, doi:10.1162/089976698300017197).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

ALPHA = 0.05
"""Significance level. Two models differ significantly if the p value after Holm's correction is at most `ALPHA`."""
_ROUNDING = 1e-12
"""A mean difference of at most this size is treated as zero, because sums of floats are rounded."""


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test."""

    only_first: int
    """Number of samples that only the first model classifies correctly."""
    only_second: int
    """Number of samples that only the second model classifies correctly."""
    p: float
    """Two-sided p value."""


@dataclass(frozen=True)
class MeanDifference:
    """Result of `compare_means`."""

    difference: float
    """Mean accuracy of the first model minus mean accuracy of the second model, in [-1, 1]."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    p: float
    """Two-sided p value."""


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Run McNemar's exact test on the verdicts of two models for the same samples in the same order.

    A verdict is True if the model classifies the sample correctly. The test is a two-sided binomial test with
    probability 1/2. It uses only the samples on which the verdicts of the models differ. If the verdicts do not differ
    on any sample, p is 1. Raises ValueError if the lengths differ. Source: McNemar 1947, doi:10.1007/BF02295996. The
    exact test is conservative if the verdicts differ on few samples, see Fagerland, Lydersen and Laake 2013,
    doi:10.1186/1471-2288-13-91.
    """
    from scipy.stats import binomtest

    only_first, only_second = _discordant(first, second)
    differing = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0)


def compare_means(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], *, draws: int = 10_000, seed: int = 0
) -> MeanDifference:
    """Compare the unweighted mean accuracies of two models over datasets by a stratified bootstrap.

    `first` and `second` have one sequence of verdicts per dataset, for the same samples in the same order. Each of the
    `draws` repetitions redraws the samples of each dataset and computes the difference of the means. The interval is
    the percentile interval (Efron and Tibshirani 1993, chapter 13). p is 2 * (c + 1) / (draws + 1), but at most 1
    (Davison and Hinkley 1997, section 4.2). Here, c is the smaller of two counts: the number of differences of at most
    zero, and the number of differences of at least zero. Swapping the models changes only the signs of the difference
    and of its interval.
    """
    import numpy

    strata = [(*_discordant(a, b), len(a)) for a, b in zip(first, second, strict=True)]
    turned = [stratum[0] for stratum in strata] < [stratum[1] for stratum in strata]
    if turned:
        strata = [(b, a, n) for a, b, n in strata]
    observed = sum((a - b) / n for a, b, n in strata) / len(strata)
    drawn = _bootstrap(strata, draws, seed)
    low, high = (float(bound) for bound in numpy.quantile(drawn, (0.025, 0.975)))
    tail = min(int((drawn <= _ROUNDING).sum()), int((drawn >= -_ROUNDING).sum()))
    p = min(1.0, 2 * (tail + 1) / (draws + 1))
    return MeanDifference(0.0 - observed, -high, -low, p) if turned else MeanDifference(observed, low, high, p)


def enough_draws(pairs: int) -> int:
    """Return the number of bootstrap draws that is needed for small p values after Holm's correction.

    `pairs` is the number of pairs of models that are tested. The correction may multiply a p value by this number.
    """
    return max(10_000, 100 * pairs)


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method, in the order of the input.

    If all hypotheses with an adjusted p value of at most alpha are rejected, the probability of one or more false
    rejections is at most alpha. Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def rank_ranges(values: Sequence[float], differ: Callable[[int, int], bool]) -> list[str]:
    """Return the rank of each model, such as "1", or a range of ranks, such as "2-4".

    The model with the highest value has rank 1. `differ` takes two indices and returns whether these models differ
    significantly. It must be symmetric. The range of a model starts at 1 plus the number of significantly better
    models. The range ends at the number of all models minus the number of significantly worse models.
    """
    ranks = []
    for index, value in enumerate(values):
        differing = [other for number, other in enumerate(values) if number != index and differ(index, number)]
        best = 1 + sum(other > value for other in differing)
        worst = len(values) - sum(other < value for other in differing)
        ranks.append(str(best) if best == worst else f"{best}-{worst}")
    return ranks


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Count the samples that exactly one of the two models classifies correctly.

    Returns one count for the first model and one for the second model.
    """
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def _bootstrap(strata: Sequence[tuple[int, int, int]], draws: int, seed: int) -> "NDArray[float64]":
    """Return the mean difference of every bootstrap draw, float64 [draws].

    `strata` has three counts for each dataset: the samples that only the first model classifies correctly, the samples
    that only the second model classifies correctly, and all samples. The difference of one sample is 1, -1 or 0.
    Therefore a bootstrap draw of a dataset is one multinomial draw of three counts.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    total = numpy.zeros(draws)
    for only_first, only_second, n in strata:
        shares = (only_first / n, only_second / n, (n - only_first - only_second) / n)
        counts = generator.multinomial(n, shares, size=draws)
        total += (counts[:, 0] - counts[:, 1]) / n
    return total / len(strata)
