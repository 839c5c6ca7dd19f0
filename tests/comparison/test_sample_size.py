"""The number of samples of a paired comparison: a known case, and the power of the real test in simulations."""

import numpy
import pytest

from robustbench_vlm.comparison.sample_size import (
    ASSUMED_DISCORDANCE,
    detection,
    recorded_discordance,
    samples_to_detect,
)
from robustbench_vlm.comparison.statistics import ALPHA, compare_means
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.leaderboard.sources import read_sources


def test_one_dataset_gives_the_number_of_connor() -> None:
    # Connor 1987: n = (1.96 sqrt(p) + 0.8416 sqrt(p - d^2))^2 / d^2 for p = 0.2 and d = 0.1.
    by_hand = (1.959964 * 0.2**0.5 + 0.841621 * (0.2 - 0.01) ** 0.5) ** 2 / 0.01
    assert samples_to_detect([0.2], 0.1) == int(by_hand) + 1


@pytest.mark.parametrize(("shares", "difference"), [([0.15] * 13, 0.015), ([0.05, 0.3, 0.1], 0.03)])
def test_the_paired_test_has_the_stated_power(shares: list[float], difference: float) -> None:
    n = samples_to_detect(shares, difference)
    generator = numpy.random.default_rng(0)
    repeats = 300
    cells = [((share + difference) / 2, (share - difference) / 2, 1 - share) for share in shares]
    counts = numpy.stack([generator.multinomial(n, each, size=repeats) for each in cells], axis=1)
    found = compare_means(counts[..., 0], counts[..., 1], [n] * len(shares)).p <= ALPHA
    # Four standard errors of 300 repeats.
    assert found.mean() == pytest.approx(0.8, abs=0.093)


def test_more_samples_are_needed_for_smaller_differences_and_larger_discordance() -> None:
    assert samples_to_detect([0.2] * 5, 0.01) > samples_to_detect([0.2] * 5, 0.02) > samples_to_detect([0.1] * 5, 0.02)
    assert samples_to_detect([0.2] * 10, 0.02) < samples_to_detect([0.2] * 5, 0.02)


def test_shares_below_the_difference_are_impossible() -> None:
    with pytest.raises(ValueError, match=r"0\.1 or more"):
        samples_to_detect([0.2, 0.05], 0.1)
    assert detection(0.1, 2, [0.2, 0.05]).samples == samples_to_detect([0.2, 0.1], 0.1)


def test_records_give_the_discordance() -> None:
    first, second = read_sources(["pmg-aft", "agft"], "mini", attack="autoattack")
    shares = recorded_discordance(
        first, second, "autoattack", Threat("Linf", parse_eps("5/255")), ["colours", "shapes"]
    )
    assert len(shares) == 2 and all(0 < share < 0.3 for share in shares)
    assert recorded_discordance(first, second, "autoattack", Threat("Linf", parse_eps("1/255")), ["colours"]) == []
    assert not detection(0.015, 13).is_recorded and detection(0.015, 13).discordance == pytest.approx(
        ASSUMED_DISCORDANCE
    )
