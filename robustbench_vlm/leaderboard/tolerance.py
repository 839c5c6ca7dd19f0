"""Honesty: how many verdicts may come out otherwise on another machine, and what a few drawn ones say of all."""

HONEST = 0.005
"""The share of verdicts that other hardware may turn, where it rounds otherwise at the edge of the attack's reach.

A convention on the generous side: on one CPU, shards, orders and batches of other sizes change no bit of a record.
"""
SIGNIFICANT = 0.01
"""How improbable it must be that an honest entry is off as often."""


def is_more_than_honest(wrong: int, n: int) -> bool:
    """Return whether so many of n verdicts are wrong that an honest entry's would be with a chance below 1 %.

    One-sided exact binomial test against `HONEST`.
    """
    from scipy.stats import binomtest

    return bool(binomtest(wrong, n, HONEST, alternative="greater").pvalue < SIGNIFICANT)


def upper_bound(wrong: int, n: int) -> float:
    """Return the one-sided exact binomial 95 % bound of a share, given a part (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    return float(binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high)
