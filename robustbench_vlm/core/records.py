"""Per-sample records, and the accuracies with intervals that are derived from them."""

import dataclasses
import math
from collections.abc import Sequence

CLEAN = "clean"
"""`broken_by` of a sample that the model classifies wrongly without an attack."""
_QUANTILE = 1.959964
"""97.5 % quantile of the normal distribution."""


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """The outcome of one cell for one sample; one row of a shard's parquet file."""

    sample_id: str
    """Name of the sample within its dataset."""
    image_sha256: str
    """Digest of the decoded uint8 pixels, (3, H, W) in C order."""
    label: int
    clean_prediction: int
    adversarial_prediction: int
    """The harness's own prediction for the projected adversarial image, or for the clean one if none was found."""
    broken_by: str
    """The stage that broke it, "clean" if it was wrong without an attack, "" if it is robust."""
    distance: float
    """Size of the kept perturbation in the threat's norm, pixel scale; 0 if none was kept."""
    forward: int
    backward: int
    """Forward and backward passes through the network spent on this sample."""
    margin: float
    """Clean logit of the label minus the largest other, divided by the logit scale."""
    warnings: str
    """Codes of the warnings that this sample raised, comma-separated."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """An accuracy in [0, 1] with its 95 % interval [low, high], over `n` samples."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of_counts(cls, successes: int, n: int) -> "Accuracy":
        """Return the accuracy of `successes` in `n` samples, with the Wilson interval."""
        return cls(successes / n, *wilson(successes, n), n)

    @classmethod
    def mean(cls, accuracies: Sequence["Accuracy"]) -> "Accuracy":
        """Return the unweighted mean over datasets, with `mean_interval`; `n` is the number of all samples."""
        values, counts = [each.value for each in accuracies], [each.n for each in accuracies]
        return cls(sum(values) / len(values), *mean_interval(values, counts), sum(counts))

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns of a table for this accuracy: `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclasses.dataclass(frozen=True)
class Score:
    """Accuracies of one cell in [0, 1] with 95 % Wilson intervals, derived from its sample results.

    The fields are those of the JSON of entries and runs.
    """

    model: str
    attack: str
    dataset: str
    classes: int
    eps: str
    n: int
    clean: float
    robust: float
    clean_interval: tuple[float, float]
    robust_interval: tuple[float, float]
    warnings: tuple[str, ...]

    @property
    def clean_accuracy(self) -> Accuracy:
        """The clean accuracy with its interval."""
        return Accuracy(self.clean, *self.clean_interval, self.n)

    @property
    def robust_accuracy(self) -> Accuracy:
        """The robust accuracy with its interval."""
        return Accuracy(self.robust, *self.robust_interval, self.n)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of `successes` in `n` samples (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return a 95 % interval of the unweighted mean of shares, each of `counts` samples of its own dataset.

    For one dataset it is the Wilson interval. For several it is the normal interval of the stratified mean with each
    dataset's unbiased variance, at a share with half a success and half a failure added (Jeffreys), so that shares of
    0 and 1 are not treated as certain. The datasets are fixed: the interval is over other samples of the same
    datasets. `benchmarks/mean_interval.py` compares its coverage with that of other formulas.
    """
    if len(shares) == 1:
        return wilson(round(shares[0] * counts[0]), counts[0])
    adjusted = [(share * n + 0.5) / (n + 1) for share, n in zip(shares, counts, strict=True)]
    variance = sum(share * (1 - share) / max(n - 1, 1) for share, n in zip(adjusted, counts, strict=True))
    mean, half = sum(shares) / len(shares), _QUANTILE * math.sqrt(variance) / len(shares)
    return max(0.0, mean - half), min(1.0, mean + half)
