"""Paired statistics: two models on the same samples, corrected for how many pairs are looked at.

Intervals of two accuracies may overlap while the paired test tells the models apart: most samples are right, or wrong,
under both, and say nothing about which is better (Dietterich 1998, doi:10.1162/089976698300017197).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

ALPHA = 0.05
"""Two models are told apart where Holm's adjusted p is at most this."""
_ROUNDING = 1e-12
"""Means of counts this near to zero are zero."""


@dataclass(frozen=True)
class McNemar:
    """Samples on which two models differ, and the two-sided p of as many or more going one way by chance."""

    only_first: int
    """Samples that only the first model is right on."""
    only_second: int
    p: float


@dataclass(frozen=True)
class Difference:
    """The first model's mean accuracy minus the second's, in [-1, 1], with a 95 % interval and a two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Return McNemar's test of aligned verdicts in its exact form, a binomial test of the samples that differ.

    McNemar 1947, doi:10.1007/BF02295996. The exact form errs on the safe side where few samples differ, see Fagerland,
    Lydersen and Laake 2013, doi:10.1186/1471-2288-13-91.
    """
    from scipy.stats import binomtest

    only_first, only_second = _discordant(first, second)
    differing = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, differing).pvalue) if differing else 1.0)


def compare_means(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]], *, draws: int = 10_000, seed: int = 0
) -> Difference:
    """Compare two models' unweighted means over datasets, given each dataset's aligned verdicts.

    Stratified bootstrap: samples are drawn again within each dataset, which stays as it is. Percentile interval (Efron
    and Tibshirani 1993, chapter 13); p is twice the smaller tail at zero, each with the draw that was observed counted
    in (Davison and Hinkley 1997, section 4.2), so it is at least 2 / (draws + 1), whichever of the two comes first.
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
    return Difference(0.0 - observed, -high, -low, p) if turned else Difference(observed, low, high, p)


def enough_draws(pairs: int) -> int:
    """Return how many draws leave each of so many pairs a p that can be small enough to survive Holm's correction."""
    return max(10_000, 100 * pairs)


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number by Holm's step-down method, in the order given.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70: the chance of a single false difference stays below alpha
    if those at or below alpha are taken.
    """
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def tie_groups(values: Sequence[float], differ: Callable[[int, int], bool]) -> list[str]:
    """Return the places that each of several models may have, "1" or "2-4", the highest value being the best.

    `differ` takes two of their indices and says whether a test tells the two apart, in whatever order they are given.
    A model's best place is behind those that are better and told apart from it; its worst is before those worse.
    """
    groups = []
    for index, value in enumerate(values):
        apart = [other for place, other in enumerate(values) if place != index and differ(index, place)]
        best = 1 + sum(other > value for other in apart)
        worst = len(values) - sum(other < value for other in apart)
        groups.append(str(best) if best == worst else f"{best}-{worst}")
    return groups


def _discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def _bootstrap(strata: Sequence[tuple[int, int, int]], draws: int, seed: int) -> "NDArray[float64]":
    """Return the mean difference of every draw, (draws,).

    A sample's difference is 1, -1 or 0, so that a dataset drawn again is one multinomial draw of their counts.
    """
    import numpy

    generator = numpy.random.default_rng(seed)
    total = numpy.zeros(draws)
    for only_first, only_second, n in strata:
        shares = (only_first / n, only_second / n, (n - only_first - only_second) / n)
        counts = generator.multinomial(n, shares, size=draws)
        total += (counts[:, 0] - counts[:, 1]) / n
    return total / len(strata)
