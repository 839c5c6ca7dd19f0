"""Paired statistics of models on the same samples: McNemar's test, tests of mean differences, Holm's correction.

A paired test uses only the samples that exactly one of the two models classifies correctly. Therefore a paired test can
find a difference even if the intervals of the two accuracies overlap (Dietterich 1998, doi:10.1162/089976698300017197).
All tests take the counts of these samples. `discordant_counts` counts them for many pairs of models in one call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import bool_, float64, int64
    from numpy.typing import NDArray

ALPHA = 0.05
"""Significance level. Two models differ significantly if the p value after Holm's correction is at most `ALPHA`."""
_QUANTILE = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class MeanDifferences:
    """Result of `compare_means`. Each field is float64 [P], with one value for each pair of models."""

    difference: "NDArray[float64]"
    """Mean accuracy of the first model minus mean accuracy of the second model, in [-1, 1]."""
    low: "NDArray[float64]"
    """Lower end of the 95 % interval of the difference."""
    high: "NDArray[float64]"
    p: "NDArray[float64]"
    """Two-sided p value."""


def discordant_counts(first: "NDArray[bool_]", second: "NDArray[bool_]") -> "tuple[NDArray[int64], NDArray[int64]]":
    """Count the samples of one dataset that exactly one of two models classifies correctly, for many pairs of models.

    `first` is bool [A, N] and `second` is bool [B, N]: the verdicts of A and B models on the same N samples in the same
    order. Returns two arrays, int64 [A, B]: the samples that only the model of `first` classifies correctly, and those
    that only the model of `second` classifies correctly. Raises ValueError if the numbers of samples differ.
    """
    import numpy

    # A product of matrices counts the samples that both models classify correctly. float32 is exact up to 2**24.
    both = numpy.rint(first.astype(numpy.float32) @ second.astype(numpy.float32).T).astype(numpy.int64)
    return first.sum(axis=1)[:, None] - both, second.sum(axis=1)[None, :] - both


def mcnemar(only_first: "NDArray[int64]", only_second: "NDArray[int64]") -> "NDArray[float64]":
    """Return the two-sided p values of McNemar's exact test.

    `only_first` and `only_second` count the samples that only one of two models classifies correctly, int64 of any
    shape. The result has the same shape. The test is a two-sided binomial test with probability 1/2. If both counts are
    0, p is 1. Source: McNemar 1947, doi:10.1007/BF02295996. The exact test is conservative if the counts are small, see
    Fagerland, Lydersen and Laake 2013, doi:10.1186/1471-2288-13-91.
    """
    import numpy
    from scipy.special import bdtr

    smaller = numpy.minimum(only_first, only_second).astype(float)
    found: NDArray[float64] = numpy.minimum(1.0, 2 * bdtr(smaller, only_first + only_second, 0.5))
    return found


def compare_means(only_first: "NDArray[int64]", only_second: "NDArray[int64]", sizes: Sequence[int]) -> MeanDifferences:
    """Compare the unweighted mean accuracies of two models over D datasets, for P pairs of models.

    `only_first` and `only_second` are int64 [P, D]: the samples of each dataset that only one of the two models
    classifies correctly. `sizes` has the number of samples of each dataset.

    The interval and p are those of the normal distribution, with the unbiased variance of the paired differences in
    each dataset (stratified mean, Cochran 1977, section 5.4). Before the variance is computed, one sample is added that
    only one model classifies correctly: half of it for each model, in equal parts for each dataset. This is the
    adjustment of Agresti and Min 2005, doi:10.1002/sim.1781, spread over the datasets. Without it, models that
    never differ have variance 0. `benchmarks/mean_difference.py` compares the coverage with that of a bootstrap.
    """
    import numpy

    n = numpy.asarray(sizes, dtype=float)
    datasets = len(n)
    added = 1 / datasets
    mean = ((only_first - only_second) / n).sum(axis=1) / datasets
    first, second = ((only + added / 2) / (n + added) for only in (only_first, only_second))
    variance = ((first + second - (first - second) ** 2) / numpy.maximum(n - 1, 1)).sum(axis=1) / datasets**2
    error = numpy.sqrt(variance)
    half = _QUANTILE * error
    # The import of scipy takes longer than a loop over a hundred thousand pairs.
    p = numpy.vectorize(math.erfc, otypes=[float])(numpy.abs(mean) / error / numpy.sqrt(2))
    return MeanDifferences(mean, mean - half, mean + half, p)


def surely_different(sizes: Sequence[int], p: float) -> float:
    """Return a difference of mean accuracies that is significant for every pair of models.

    `sizes` has the number of samples of each dataset. The p value of `compare_means` is at most `p`, in (0, 1), for
    every pair of models whose mean accuracies differ by the returned value or more, because the variance of a paired
    difference is at most 1.
    """
    largest: float = sum(1 / max(n - 1, 1) for n in sizes) ** 0.5 / len(sizes)
    return -NormalDist().inv_cdf(p / 2) * largest


def holm(p: "Sequence[float] | NDArray[float64]") -> "NDArray[float64]":
    """Return p values adjusted by Holm's step-down method, float64 in the order of the input.

    If all hypotheses with an adjusted p value of at most alpha are rejected, the probability of one or more false
    rejections is at most alpha. Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    A hypothesis may be left out of `p` if its p value is at most alpha divided by the number of all hypotheses. The
    method always rejects it first, so the same other hypotheses are rejected without it.
    """
    import numpy

    values = numpy.asarray(p, dtype=float)
    order = numpy.argsort(values, kind="stable")
    steps = len(values) - numpy.arange(len(values))
    adjusted = numpy.empty(len(values))
    adjusted[order] = numpy.maximum.accumulate(numpy.minimum(1.0, steps * values[order]))
    return adjusted


def rank_range(better: int, worse: int, count: int) -> str:
    """Return the rank of a model, such as "1", or a range of ranks, such as "2-4".

    The best model has rank 1. `better` and `worse` are the numbers of significantly better and significantly worse
    models. `count` is the number of all models. The range starts at 1 + `better` and ends at `count` - `worse`.
    """
    best, worst = 1 + better, count - worse
    return str(best) if best == worst else f"{best}-{worst}"
