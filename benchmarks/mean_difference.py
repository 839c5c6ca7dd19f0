"""Measure the coverage of 95 % intervals of a mean difference of two models, and the error rate of p, for two formulas.

    python benchmarks/mean_difference.py

The numbers of samples that only one of two models classifies correctly are drawn many times for each kind of models and
each number of samples per dataset. Each column of the table is one formula: ours (`compare_means`), and a stratified
bootstrap with percentile interval. It shows the share of draws (in %) whose interval contains the true difference, the
mean width of the interval in percentage points, and the share of draws with p of at most 0.05. If the models are
equally good, this share should be at most 5. With `--draws 4000` a share has an error of about 0.7.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy import float64, int64
from numpy.typing import NDArray

from robustbench_vlm.comparison.statistics import MeanDifferences, compare_means

KINDS = {
    "equal, 20 % differ": [(0.1, 0.1)] * 13,
    "equal, 3 % differ": [(0.015, 0.015)] * 13,
    "equal, better on some datasets": [(share, 0.15) for share in np.linspace(0, 0.3, 13)],
    "equal, differ on 3 datasets": [(0.0, 0.0)] * 10 + [(0.02, 0.02)] * 3,
    "better by 2 points": [(0.06, 0.04)] * 13,
    "equal, 2 datasets": [(0.1, 0.1)] * 2,
    "equal, 1 dataset": [(0.05, 0.05)],
}
"""For each dataset, the probabilities that only the first and only the second model classifies a sample correctly."""


def bootstrap(
    first: NDArray[int64], second: NDArray[int64], sizes: Sequence[int], draw: np.random.Generator, resamples: int
) -> MeanDifferences:
    """Return percentile intervals and two-sided p values of a stratified bootstrap (Davison and Hinkley 1997)."""
    total = np.zeros((len(first), resamples))
    for place, n in enumerate(sizes):
        shares = np.stack([first[:, place], second[:, place], n - first[:, place] - second[:, place]], axis=1) / n
        counts = draw.multinomial(n, shares[:, None], size=total.shape)
        total += (counts[..., 0] - counts[..., 1]) / n / len(sizes)
    low, high = np.quantile(total, (0.025, 0.975), axis=1)
    tail = np.minimum((total <= 1e-12).sum(axis=1), (total >= -1e-12).sum(axis=1))
    return MeanDifferences(total.mean(axis=1), low, high, np.minimum(1, 2 * (tail + 1) / (resamples + 1)))


def shown(found: MeanDifferences, truth: float) -> str:
    """Return coverage, mean width and share of significant draws of one formula, in %."""
    held: NDArray[float64] = (found.low - 1e-9 <= truth) & (truth <= found.high + 1e-9)
    width = (found.high - found.low).mean()
    return f"{100 * held.mean():.1f} ({100 * width:.1f}), {100 * (found.p <= 0.05).mean():.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=999)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 24, 200])
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    print("| samples per dataset | models | ours | bootstrap |\n| --- | --- | --- | --- |")
    for n in options.samples:
        for kind, pairs in KINDS.items():
            counts = np.stack([draw.multinomial(n, (b, c, 1 - b - c), size=options.draws) for b, c in pairs], axis=1)
            first, second, sizes = counts[..., 0], counts[..., 1], [n] * len(pairs)
            truth = sum(b - c for b, c in pairs) / len(pairs)
            ours = compare_means(first, second, sizes)
            other = bootstrap(first, second, sizes, draw, options.resamples)
            print(f"| {n} | {kind} | {shown(ours, truth)} | {shown(other, truth)} |", flush=True)


if __name__ == "__main__":
    main()
