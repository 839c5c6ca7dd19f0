"""Exact intervals for the number of failures in a finite population, computed from samples without replacement.

The population consists of strata, such as datasets. Stratum h has N_h items, of which an unknown number K_h fail. Items
are drawn in a random order without replacement. After n_h draws from stratum h, k_h failures were seen. The intervals
are confidence sequences: with a probability of at least the confidence level, the intervals after all draws contain the
true number. A user may therefore look at the interval after each draw and stop when the interval is narrow enough.

Let L(K) be the probability of the sequence of outcomes that was seen, for failure counts K = (K_1, ..., K_H). Let Q be
the probability of the same sequence under a fixed mixture of distributions. Under the true K, the ratio Q / L(K) is a
martingale that starts at 1. By Ville's inequality, the probability that the ratio ever exceeds 1 / alpha is at most
alpha. The set of all K with L(K) >= alpha * Q therefore contains the true K at all times with probability at least 1 -
alpha. This construction is the method of mixtures for samples without replacement (Robbins 1970,
doi:10.1214/aoms/1177696786; Waudby-Smith and Ramdas 2020, arXiv:2006.04347). `share_bounds` returns the smallest and
the largest weighted sum of failures in this set.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[numpy.float64]

LEVEL = 0.95
"""The confidence level of the intervals."""
_PRIORS = ((0.3, 1e-4, 1.0), (0.3, 3.0, 600.0), (0.3, 3.0, 100.0), (0.1, 0.5, 1.0))
"""The components of the mixture Q. Each has a weight and the parameters a and b of a beta distribution of the failure
rate.

The first component expects no failure, the second a failure rate near 0.5 %, the third a rate near 3 %, and the last
any rate. The mixture affects the width of the intervals, but not their coverage.
"""
_LEAST, _MOST, _STEPS = -9.0, 5.0, 30
"""`_largest` searches a multiplier m. The first two values are the bounds of log10(m / largest weight). The last value
is the number of search steps."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Population:
    """Strata of a finite population.

    Raises ValueError if the two fields have different shapes.
    """

    sizes: "NDArray[numpy.int64]"
    """The number of items in each stratum, int64 [H]."""
    weights: "Floats"
    """The weight of one failure in each stratum, float64 [H]. All weights are positive."""

    def __post_init__(self) -> None:
        if self.sizes.shape != self.weights.shape:
            raise ValueError(f"sizes and weights must have one shape, got {self.sizes.shape} and {self.weights.shape}")


def share_bounds(
    population: Population, drawn: "ArrayLike", failed: "ArrayLike", *, level: float = LEVEL
) -> tuple["Floats", "Floats"]:
    """Return the lower and the upper bound of the weighted sum of failures in the population.

    Args:
        population: The strata with their weights.
        drawn: The number of items drawn from each stratum, int64 [..., H].
        failed: The number of failures among the drawn items of each stratum, int64 [..., H].
        level: The confidence level. The interval contains the true sum with at least this probability, even if the
            number of draws depends on the outcomes.

    Returns:
        The bounds, both float64 [...]. If all items are drawn, both are equal to the true sum.
    """
    n, k = (numpy.asarray(values, dtype=numpy.int64) for values in (drawn, failed))
    weights, left = population.weights, population.sizes - n
    seen, most = (k * weights).sum(-1), ((k + left) * weights).sum(-1)
    table = _log_likelihood(population.sizes, n, k)
    threshold = numpy.log1p(-level) + _log_mixture(n.sum(-1), k.sum(-1))
    high = numpy.minimum(_largest(table, weights, threshold), most)
    low = numpy.maximum(-_largest(table, -weights, threshold), seen)
    # Without draws, every failure count is possible. Rounding must not exclude the true sum.
    slack = 1e-9 * weights.max(initial=0.0)
    if numpy.all(weights == weights[:1]):
        # All weights are equal, so the sum is a multiple of this weight. The upper bound is therefore
        # rounded down to a multiple, and the lower bound is rounded up.
        unit = weights[0] if len(weights) else 1.0
        high, low = numpy.floor((high + slack) / unit) * unit, numpy.ceil((low - slack) / unit) * unit
    return low, high


def _log_likelihood(sizes: "NDArray[numpy.int64]", n: "NDArray[numpy.int64]", k: "NDArray[numpy.int64]") -> "Floats":
    """Return the logarithm of the probability of each stratum's outcomes for every possible number of failures.

    The result is float64 [..., H, max(sizes) + 1], with -inf for impossible numbers of failures.
    """
    from scipy.special import gammaln

    largest = int(sizes.max(initial=0))
    factorial = gammaln(numpy.arange(largest + 2, dtype=numpy.float64) + 1)
    total = numpy.arange(largest + 1)
    passed = (n - k)[..., None]
    k = k[..., None]
    intact = sizes[:, None] - total
    possible = (total >= k) & (intact >= passed)
    values = factorial[total] - factorial[numpy.where(possible, total - k, 0)]
    values = values + factorial[numpy.maximum(intact, 0)] - factorial[numpy.where(possible, intact - passed, 0)]
    values = values - (factorial[sizes] - factorial[sizes - n])[..., None]
    return numpy.where(possible, values, -numpy.inf)


def _log_mixture(n: "NDArray[numpy.int64]", k: "NDArray[numpy.int64]") -> "Floats":
    """Return log(Q), float64 [...]. Q is the probability of a sequence of n draws with k failures under the mixture."""
    from scipy.special import betaln, logsumexp

    parts = [numpy.log(share) + betaln(a + k, b + n - k) - betaln(a, b) for share, a, b in _PRIORS]
    return cast("Floats", logsumexp(numpy.stack(parts), axis=0))


def _largest(table: "Floats", weights: "Floats", threshold: "Floats") -> "Floats":
    """Return an upper bound of sum(weights * K) over all K with log-likelihood >= threshold, float64 [...].

    table[..., h, k] is the log-likelihood of k failures in stratum h. For every multiplier m > 0, the Lagrangian dual
    function sum_h max_k (weights[h] * k + m * table[..., h, k]) - m * threshold is an upper bound. This function is
    convex in m, so a golden-section search finds its minimum. The bound exceeds the true maximum by less than the
    weight of one item, because the log-likelihood is concave in K.
    """
    gains = weights[:, None] * numpy.arange(table.shape[-1])
    unit = numpy.abs(weights).max(initial=1e-300)

    def dual(log_multiplier: "Floats") -> "Floats":
        multiplier = unit * 10.0**log_multiplier
        best = (gains + multiplier[..., None, None] * table).max(-1).sum(-1)
        return cast("Floats", best - multiplier * threshold)

    shape = threshold.shape
    low, high = numpy.full(shape, _LEAST), numpy.full(shape, _MOST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = dual(left), dual(right)
    for _ in range(_STEPS):
        lower = at_left < at_right
        low, high = numpy.where(lower, low, left), numpy.where(lower, right, high)
        inner = numpy.where(lower, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        value = dual(inner)
        left, right = numpy.where(lower, inner, right), numpy.where(lower, left, inner)
        at_left, at_right = numpy.where(lower, value, at_right), numpy.where(lower, at_left, value)
    return numpy.minimum(at_left, at_right)
