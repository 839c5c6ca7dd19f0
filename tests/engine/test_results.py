"""The interval of a mean over data sets."""

import random

import pytest

from robustbench_vlm.engine.results import mean_interval


def test_the_interval_of_one_share_is_agresti_and_coull_s_width_about_it() -> None:
    low, high = mean_interval([0.5], [96])
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(2 * 1.959964 * 0.05)


def test_the_interval_shrinks_with_samples_and_with_data_sets() -> None:
    widths = [
        high - low
        for low, high in (mean_interval([0.3] * sets, [n] * sets) for sets, n in ((1, 50), (1, 200), (4, 200)))
    ]
    assert widths[0] > 1.8 * widths[1] and widths[1] == pytest.approx(2 * widths[2])


def test_a_share_of_nothing_is_not_taken_for_certain() -> None:
    low, high = mean_interval([0.0, 0.0], [50, 50])
    assert low == 0 and 0.01 < high < 0.1


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, shares, n = random.Random(0), [0.02, 0.4, 0.7], 48
    held = 0
    for _ in range(2000):
        found = [sum(draw.random() < share for _ in range(n)) / n for share in shares]
        low, high = mean_interval(found, [n] * 3)
        held += low <= sum(shares) / 3 <= high
    assert 0.935 < held / 2000 < 0.975
