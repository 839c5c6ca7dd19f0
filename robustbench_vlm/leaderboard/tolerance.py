"""Tolerances for recomputed records: rounding on other hardware, and bounds from random samples."""

TOLERANCE = 0.005
"""Largest expected share of robust samples that a stronger attack breaks."""
ROUNDING = 0.001
"""Largest expected share of verdicts that rounding on other hardware changes. `benchmarks/verification.py rounding`
found 0 of 2600."""
CLOSE_MARGIN = 1e-4
"""Largest margin of the strongest image at which rounding on other hardware may change a verdict, as a difference of
cosine similarities. For images near the decision boundary, `benchmarks/verification.py rounding` measured differences
of at most 1.2e-5."""
SIGNIFICANCE = 0.01
"""Significance level of the test that checks whether a number exceeds a tolerance."""


def exceeds_tolerance(wrong: int, n: int, share: float = TOLERANCE) -> bool:
    """Return whether `wrong` of `n` samples are significantly more than a tolerated share of the samples.

    The test is a one-sided exact binomial test of `share` at the significance level `SIGNIFICANCE`.
    """
    from scipy.stats import binomtest

    return bool(binomtest(wrong, n, share, alternative="greater").pvalue < SIGNIFICANCE)


def upper_bound(wrong: int, n: int) -> float:
    """Return an upper limit for the share of wrong verdicts if `wrong` of `n` randomly chosen verdicts are wrong.

    The limit holds with 95 % confidence. It is one-sided and exact for a binomial distribution (Clopper and Pearson
    1934). For draws without replacement, the limit is conservative. Without draws, it is 1.
    """
    from scipy.stats import binomtest

    return float(binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high) if n else 1.0
