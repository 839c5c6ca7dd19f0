"""Per-sample results, and the accuracies and confidence intervals that are computed from them."""

import dataclasses
import enum
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

CLEAN = "clean"
"""The value of `SampleResult.broken_by` for a sample that the model misclassifies without an attack."""
UNFINISHED = "not finished"
"""The value of `SampleResult.broken_by` for a sample of an estimated run that survived the first phase of the attack,
but was not attacked with the second phase."""
_QUANTILE = 1.959964
"""The 97.5 % quantile of the normal distribution, as rounded in `mean_interval`."""
_WILSON_QUANTILE = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, as used by scipy."""


class Verdict(enum.Enum):
    """The verdict on a sample. It has no truth value, so no code can take a sample that is not finished for robust."""

    ROBUST = "robust"
    BROKEN = "broken"
    """The clean image is misclassified, or an attack found a misclassified image."""
    UNFINISHED = UNFINISHED

    def __bool__(self) -> bool:
        raise TypeError("a verdict has three values and is neither true nor false: compare it with Verdict.ROBUST")


_VERDICTS = {"": Verdict.ROBUST, UNFINISHED: Verdict.UNFINISHED}
"""The verdicts of values of `SampleResult.broken_by`. All other values are `Verdict.BROKEN`."""


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """The result of one sample for one model, attack, dataset and eps. Each result is one row of a parquet file."""

    sample_id: str
    """The name of the sample within its dataset."""
    image_sha256: str
    """sha256 of the decoded image, uint8 [3, H, W] in C order."""
    label: int
    """The index of the correct class."""
    clean_prediction: int
    """The index of the class that the model predicts for the clean image."""
    adversarial_prediction: int
    """The index of the class that the model predicts for the adversarial image, after this image is projected into the
    threat model. If the attack failed, the value is equal to `clean_prediction`.
    """
    broken_by: str
    """The name of the attack stage that changed the prediction. "clean" if the clean image is misclassified, and "" if
    the sample is robust. "not finished" if an estimated run did not attack the sample with the whole attack.
    """
    distance: float
    """The norm of the adversarial perturbation, for pixels in [0, 1]. 0 if no attack succeeded."""
    forward: int
    """Number of forward passes of this sample through the network."""
    backward: int
    """Number of backward passes of this sample through the network."""
    margin: float
    """The margin of the clean image: the logit of the correct class minus the largest other logit, divided by the logit
    scale. For models that are not bundled, and on a GPU, the batch size may change its last bits.
    """
    warnings: str
    """The codes of the warnings about this sample, separated by commas."""

    @property
    def verdict(self) -> Verdict:
        """The verdict: robust, broken or not finished."""
        return _VERDICTS.get(self.broken_by, Verdict.BROKEN)


@dataclasses.dataclass(frozen=True)
class DrawnResult(SampleResult):
    """The result of one sample of a random model over several fresh draws of the model's random numbers.

    The sample is robust if at least 99 % of the draws predict the label, for the clean and for the adversarial image.
    If less predict it, the predicted class is the most frequent wrong class.
    """

    draws: int
    """The number of fresh draws."""
    clean_right: int
    """The number of draws that predict the label for the clean image."""
    right: int
    """The number of draws that predict the label for the strongest image of the attack."""


def draws_needed(draws: int) -> int:
    """Return the number of draws that must predict the label of a robust sample: at least 99 % of `draws`."""
    return -(-99 * draws // 100)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """An accuracy in [0, 1] with its 95 % confidence interval [low, high] and the number of samples n."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of_counts(cls, successes: int, n: int) -> "Accuracy":
        """Return the accuracy with its Wilson interval. `successes` of the `n` samples are classified correctly."""
        return cls(successes / n, *wilson(successes, n), n)

    @classmethod
    def of_shares(cls, shares: Sequence[float]) -> "Accuracy":
        """Return the mean of one share in [0, 1] for each sample, with an interval for new samples and new draws.

        A share is the fraction of a sample's draws that are classified correctly. The interval is the Wilson interval
        of the mean. It is conservative, because the variance of shares with the mean p is at most p * (1 - p), the
        variance of verdicts that are 0 or 1.
        """
        n = len(shares)
        mean = math.fsum(shares) / n
        return cls(mean, *wilson(mean * n, n), n)

    @classmethod
    def mean(cls, accuracies: Sequence["Accuracy"]) -> "Accuracy":
        """Return the unweighted mean of several datasets' accuracies, with the interval that `mean_interval` computes.

        The `n` of the result is the total number of samples.
        """
        values, counts = [each.value for each in accuracies], [each.n for each in accuracies]
        # The mean is computed from fractions, so that the order of the datasets does not change the float.
        mean = float(sum(map(_exact, values, counts)) / len(values))
        return cls(mean, *mean_interval(values, counts), sum(counts))

    def columns(self, name: str) -> dict[str, float]:
        """Return this accuracy as three table columns: `name`, `name_low` and `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclasses.dataclass(frozen=True)
class EstimatedAccuracy(Accuracy):
    """An estimated robust accuracy. [low, high] is the 95 % interval for other samples of the same datasets."""

    full_attack: tuple[float, float]
    """The design interval: the 95 % interval of the accuracy that the full attack gives on these samples."""
    survivors: int
    """The number of samples that the first phase of the attack did not break."""
    drawn: int
    """The number of survivors that were attacked in full."""
    broken: int
    """The number of drawn survivors that the second phase broke."""
    passes: int
    """The number of forward and backward passes."""
    passes_full: int
    """The estimated number of passes of the full attack."""

    def columns(self, name: str) -> dict[str, float]:
        """Return this accuracy as table columns, with the design interval and the counts of the estimate."""
        low, high = self.full_attack
        design = {f"{name}_full_attack_low": low, f"{name}_full_attack_high": high}
        return super().columns(name) | design | {f"{name}_survivors": self.survivors, f"{name}_drawn": self.drawn}

    @property
    def text(self) -> str:
        """The sentence that marks the number as an estimate."""
        return f"estimated: {estimate_text(self.drawn, self.survivors, self.passes_full / max(self.passes, 1))}"


def estimate_text(drawn: int, survivors: int, saved: float) -> str:
    """Return the counts of an estimate as text.

    `saved` is the number of passes of the full attack divided by the number of passes of the run.
    """
    return f"{drawn} of {survivors} survivors attacked in full, {saved:.1f} times fewer passes"


@dataclasses.dataclass(frozen=True)
class Score:
    """The clean and robust accuracy of one model for one attack, dataset and eps, computed from per-sample results.

    Leaderboard entries and the output of runs contain these fields as JSON.
    """

    model: str
    attack: str
    dataset: str
    classes: int
    """The number of classes of the dataset."""
    eps: str
    """The radius of the attack, such as "4/255"."""
    n: int
    """The number of samples."""
    clean: float
    """The clean accuracy, in [0, 1]."""
    robust: float
    """The robust accuracy, in [0, 1]."""
    clean_interval: tuple[float, float]
    """The 95 % Wilson interval of the clean accuracy."""
    robust_interval: tuple[float, float]
    """The 95 % Wilson interval of the robust accuracy."""
    warnings: tuple[str, ...]
    """The codes of the warnings about this result."""

    @property
    def clean_accuracy(self) -> Accuracy:
        """The clean accuracy with its interval."""
        return Accuracy(self.clean, *self.clean_interval, self.n)

    @property
    def robust_accuracy(self) -> Accuracy:
        """The robust accuracy with its interval."""
        return Accuracy(self.robust, *self.robust_interval, self.n)


def passes_of(results: Iterable[SampleResult]) -> int:
    """Return the number of forward and backward passes of records."""
    return sum(result.forward + result.backward for result in results)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval (low, high) of the share successes / n (Wilson 1927).

    Entries store these floats. They are exactly those of `binomtest(successes, n).proportion_ci(method="wilson")` in
    scipy, whose import takes most of a second.
    """
    share = successes / n
    scale = 2 * (n + _WILSON_QUANTILE**2)
    center = (2 * n * share + _WILSON_QUANTILE**2) / scale
    half = _WILSON_QUANTILE / scale * math.sqrt(4 * n * share * (1 - share) + _WILSON_QUANTILE**2)
    return 0.0 if successes == 0 else center - half, 1.0 if successes == n else center + half


def _exact(share: float, n: int) -> Fraction:
    """Return the fraction k / n, with an integer k, that is equal to `share` up to rounding errors.

    If no such fraction exists, return `share`.
    """
    fraction = Fraction(round(share * n), n)
    return fraction if math.isclose(fraction, share, rel_tol=0, abs_tol=1e-12) else Fraction(share)


def mean_interval(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return a 95 % confidence interval (low, high) of the unweighted mean of the accuracies on several datasets.

    `shares[i]` is the accuracy of dataset i, in [0, 1], and `counts[i]` is its number of samples. The interval is valid
    for new samples from the same datasets, but not for new datasets.

    For one dataset, the interval is the Wilson interval. For several datasets, it is the normal interval of the
    stratified mean, with the unbiased variance of each dataset. Half a success and half a failure are added to each
    dataset before its variance is computed (Jeffreys). Without these additions, accuracies of 0 and 1 would have
    variance 0. `benchmarks/mean_interval.py` compares the coverage of this interval with other formulas.
    """
    if len(shares) == 1:
        return wilson(round(shares[0] * counts[0]), counts[0])
    adjusted = [(share * n + 0.5) / (n + 1) for share, n in zip(shares, counts, strict=True)]
    variance = sum(share * (1 - share) / max(n - 1, 1) for share, n in zip(adjusted, counts, strict=True))
    mean, half = sum(shares) / len(shares), _QUANTILE * math.sqrt(variance) / len(shares)
    return max(0.0, mean - half), min(1.0, mean + half)
