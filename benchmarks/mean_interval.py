"""Measure how often a 95 % interval of a mean over datasets contains the true mean, for four formulas.

    python benchmarks/mean_interval.py

Verdicts of 13 datasets are drawn many times for each kind of accuracies and each number of samples per dataset. Each
column of the table is one formula. It shows the share of draws (in %) whose interval contains the mean of the true
accuracies, and the mean width of the interval in percentage points. With `--draws 20000` the share has an error of 0.3.
"""

import argparse
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from robustbench_vlm.core.records import mean_interval, wilson

Interval = Callable[[Sequence[float], Sequence[int]], tuple[float, float]]
WILSON = functools.cache(wilson)
SETS = 13
QUANTILE = 1.959964
KINDS = {
    "all 0.5": [0.5] * SETS,
    "all 0.3": [0.3] * SETS,
    "all 0.05": [0.05] * SETS,
    "all 0.97": [0.97] * SETS,
    "0.02 to 0.95": list(np.linspace(0.02, 0.95, SETS)),
    "mostly 0": [0.0] * 8 + [0.01, 0.05, 0.05, 0.15, 0.2],
}


def plain(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return the normal interval in which each accuracy has its own variance, which is 0 for accuracies of 0 and 1."""
    return _normal(shares, [share * (1 - share) / n for share, n in zip(shares, counts, strict=True)])


def agresti_coull(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return the normal interval with two successes and two failures added to each dataset (Agresti and Coull 1998)."""
    more = [(share * n + 2) / (n + 4) for share, n in zip(shares, counts, strict=True)]
    return _normal(shares, [share * (1 - share) / (n + 4) for share, n in zip(more, counts, strict=True)])


def mover(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return the combination of the Wilson limits of each accuracy (Zou and Donner 2008)."""
    limits = [WILSON(round(share * n), n) for share, n in zip(shares, counts, strict=True)]
    below, above = (
        math.hypot(*(share - each[end] for share, each in zip(shares, limits, strict=True))) / len(shares)
        for end in (0, 1)
    )
    return _mean(shares) - below, _mean(shares) + above


def _normal(shares: Sequence[float], variances: Sequence[float]) -> tuple[float, float]:
    half = QUANTILE * math.sqrt(sum(variances)) / len(shares)
    return _mean(shares) - half, _mean(shares) + half


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares)


FORMULAS: dict[str, Interval] = {"ours": mean_interval, "Agresti-Coull": agresti_coull, "MOVER": mover, "plain": plain}


def coverage(interval: Interval, found: Sequence[Sequence[float]], n: int, truth: float) -> tuple[float, float]:
    """Return the share of draws whose interval contains the truth, and the mean width of the intervals."""
    ends = [interval(shares, [n] * len(shares)) for shares in found]
    held = sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in ends)
    return held / len(ends), sum(high - low for low, high in ends) / len(ends)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20000)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 24, 200, 1000])
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    print("| samples per dataset | accuracies | " + " | ".join(FORMULAS) + " |")
    print("| --- | --- |" + " --- |" * len(FORMULAS))
    for n in options.samples:
        for kind, accuracies in KINDS.items():
            found = (draw.binomial(n, accuracies, size=(options.draws, SETS)) / n).tolist()
            cells = [coverage(each, found, n, _mean(accuracies)) for each in FORMULAS.values()]
            shown = (f"{100 * held:.1f} ({100 * width:.1f})" for held, width in cells)
            print(f"| {n} | {kind} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
