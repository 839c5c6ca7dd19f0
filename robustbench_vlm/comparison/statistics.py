"""Paired statistics of two models on the same samples: McNemar's test, bootstrap of the means, Holm's correction.

A paired test can find a difference although the intervals of the two accuracies overlap: it uses only the samples on
which the models differ, and most samples are right, or wrong, under both (Dietterich 1998,
doi:10.1162/089976698300017197).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

ALPHA = 0.05
"""Two models differ significantly if the p value, adjusted by Holm's method, is at most this."""
_ROUNDING = 1e-12
"""A mean difference at most this far from zero counts as zero."""


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test: the numbers of samples that only one model gets right, and the two-sided p value."""

    only_first: int
    """Samples that only the first model classifies correctly."""
    only_second: int
    p: float


@dataclass(frozen=True)
class MeanDifference:
    """Mean accuracy of the first model minus that of the second, in [-1, 1], with 95 % interval and two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Run McNemar's exact test on two models' verdicts (True: right) of the same samples in the same order.

    The test is a two-sided binomial test (probability 1/2) of the samples on which the models differ; p is 1 if there
    are none. Sources: McNemar 1947, doi:10.1007/BF02295996; the exact form is conservative if few samples differ, see
    Fagerland, Lydersen and Laake 2013, doi:10.1186/1471-2288-13-91. Raises ValueError for different lengths.
    """
    from scipy.stats import binomtest

    only_first, only_second = _discordant(first, second)
    differing = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0)


def compare_means(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], *, draws: int = 10_000, seed: int = 0
) -> MeanDifference:
    """Compare two models' unweighted means over datasets, given each dataset's verdicts in the same order.

    Stratified bootstrap: samples are redrawn within each dataset. The interval is the percentile interval (Efron and
    Tibshirani 1993, chapter 13). p is twice the smaller tail at zero, with the observed value counted as a draw
    (Davison and Hinkley 1997, section 4.2), so p is at least 2 / (draws + 1). Swapping the models changes only signs.
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
    """Return a number of bootstrap draws with which p can stay small after Holm's correction of `pairs` pairs."""
    return max(10_000, 100 * pairs)


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted by Holm's step-down method, in the order given.

    Rejecting those at or below alpha keeps the probability of any false rejection at or below alpha (Holm 1979,
    Scandinavian Journal of Statistics 6, 65-70).
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def rank_ranges(values: Sequence[float], differ: Callable[[int, int], bool]) -> list[str]:
    """Return the rank of each model, "1", or a range "2-4" of ranks that the tests leave open; the highest value wins.

    `differ` takes two indices and returns whether the two models differ significantly; the order of the two must not
    matter. The lower end of a range counts the significantly better models, the upper end the significantly worse.
    """
    ranks = []
    for index, value in enumerate(values):
        differing = [other for number, other in enumerate(values) if number != index and differ(index, number)]
        best = 1 + sum(other > value for other in differing)
        worst = len(values) - sum(other < value for other in differing)
        ranks.append(str(best) if best == worst else f"{best}-{worst}")
    return ranks


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def _bootstrap(strata: Sequence[tuple[int, int, int]], draws: int, seed: int) -> "NDArray[float64]":
    """Return the mean difference of every draw, (draws,).

    The difference of a sample is 1, -1 or 0, so redrawing a dataset is one multinomial draw of the three counts.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    total = numpy.zeros(draws)
    for only_first, only_second, n in strata:
        shares = (only_first / n, only_second / n, (n - only_first - only_second) / n)
        counts = generator.multinomial(n, shares, size=draws)
        total += (counts[:, 0] - counts[:, 1]) / n
    return total / len(strata)
