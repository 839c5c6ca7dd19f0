"""The number of samples that a paired comparison of two models needs to show a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from robustbench_vlm.comparison.align import ModelRecords
from robustbench_vlm.comparison.statistics import ALPHA
from robustbench_vlm.core.threat import Threat

ASSUMED_DISCORDANCE = 0.15
"""The assumed share of samples that exactly one of two models classifies correctly. It is used if no records of the
models exist. It is the median over 15 pairs of bundled models under AutoAttack at 5/255."""
POWER = 0.8
"""The probability with which the comparison must find the difference."""


@dataclass(frozen=True)
class Detection:
    """The number of samples that a comparison needs."""

    difference: float
    """The difference of the mean robust accuracies that must be found, in (0, 1)."""
    power: float
    """The probability that the p value is at most `statistics.ALPHA` if the models differ by `difference`."""
    discordance: float
    """The mean over datasets of the share of samples that only one of the two models classifies correctly."""
    is_recorded: bool
    """True if `discordance` comes from records, False if it is assumed."""
    samples: int
    """The number of samples per dataset."""


def samples_to_detect(discordance: Sequence[float], difference: float, power: float = POWER) -> int:
    """Return the number of samples per dataset that a paired test needs to find a difference of two mean accuracies.

    The formula is that of Connor 1987 (doi:10.2307/2531961) for a paired test, summed over the datasets of an
    unweighted mean. Raises ValueError if an entry of `discordance` is less than `difference`. Such an entry is too
    small: if two accuracies differ by 5 points, at least 5 % of the samples are correct for only one of the models.

    Args:
        discordance: For each dataset the share of samples that only one of the models classifies correctly, in [0, 1].
        difference: The difference of the mean accuracies, in (0, 1).
        power: The probability to find the difference, in (0, 1).
    """
    if not 0 < difference < 1 or not 0 < power < 1:
        raise ValueError(f"difference and power must be between 0 and 1, got {difference} and {power}")
    if not discordance or min(discordance) < difference:
        raise ValueError(f"each share must be {difference} or more, got {list(discordance)}")
    normal, count = NormalDist(), len(discordance)
    under_equality = math.sqrt(sum(discordance)) / count
    under_difference = math.sqrt(sum(share - difference**2 for share in discordance)) / count
    distance = normal.inv_cdf(1 - ALPHA / 2) * under_equality + normal.inv_cdf(power) * under_difference
    return math.ceil((distance / difference) ** 2)


def detection(difference: float, datasets: int, recorded: Sequence[float] = ()) -> Detection:
    """Return the number of samples per dataset that finds a difference of two models with the probability `POWER`.

    `datasets` is the number of datasets. `recorded` has one entry per dataset: the share of samples that only one of
    the models classifies correctly. If `recorded` is empty, `ASSUMED_DISCORDANCE` is used for every dataset. An entry
    that is less than `difference` is replaced by `difference`, the smallest possible share.
    """
    shares = [max(share, difference) for share in recorded or [ASSUMED_DISCORDANCE] * datasets]
    mean = sum(shares) / len(shares)
    return Detection(difference, POWER, mean, bool(recorded), samples_to_detect(shares, difference))


def recorded_discordance(
    first: ModelRecords, second: ModelRecords, attack: str, threat: Threat, datasets: Sequence[str]
) -> list[float]:
    """Return for each dataset the share of samples that only one of two models classifies correctly.

    The shares are computed from the models' records of one attack at one radius. The list is empty if a model lacks
    records of a dataset, or if the models have no common sample.
    """
    found = []
    for name in datasets:
        verdicts = [
            {result.sample_id: result.broken_by == "" for result in each.results}
            for model in (first, second)
            for each in model.evidence
            if (each.score.attack, each.score.dataset, each.threat) == (attack, name, threat)
        ]
        common = verdicts[0].keys() & verdicts[1].keys() if len(verdicts) == 2 else set()
        if not common:
            return []
        found.append(sum(verdicts[0][sample] != verdicts[1][sample] for sample in common) / len(common))
    return found
