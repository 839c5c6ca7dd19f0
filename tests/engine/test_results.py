"""Test the interval of a mean over datasets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vlm.core.records import mean_interval, wilson


@given(st.integers(1, 300), st.data())
def test_the_interval_of_one_dataset_is_the_wilson_interval(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    assert mean_interval([right / n], [n]) == wilson(right, n)


def test_the_width_of_the_interval_is_that_of_the_unbiased_variances() -> None:
    low, high = mean_interval([0.5, 0.5], [101, 101])
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(2 * 1.959964 * 0.05 / 2**0.5)
    assert mean_interval([1.0, 1.0], [1, 1])[0] < 0.5


def test_the_interval_shrinks_with_samples_and_with_datasets() -> None:
    widths = [
        high - low
        for low, high in (mean_interval([0.3] * sets, [n] * sets) for sets, n in ((2, 50), (2, 200), (8, 200)))
    ]
    assert widths[0] > 1.8 * widths[1] and widths[1] == pytest.approx(2 * widths[2])


def test_the_interval_of_zero_accuracies_has_a_positive_width() -> None:
    low, high = mean_interval([0.0, 0.0], [50, 50])
    assert low == 0 and 0.01 < high < 0.1


@pytest.mark.parametrize("n", [8, 24, 200])
@pytest.mark.parametrize(
    "accuracies",
    [[0.02, 0.4, 0.7], [0.5] * 13, [0.3] * 13, [0.05] * 13, [0.97] * 13, list(np.linspace(0.02, 0.95, 13))],
    ids=lambda accuracies: f"{len(accuracies)}x{accuracies[0]}",
)
def test_the_coverage_of_the_interval_is_about_95_percent(accuracies: list[float], n: int) -> None:
    draws, truth = 4000, sum(accuracies) / len(accuracies)
    found = np.random.default_rng(0).binomial(n, accuracies, size=(draws, len(accuracies))) / n
    ends = [mean_interval(shares, [n] * len(shares)) for shares in found.tolist()]
    held = sum(low <= truth + 1e-12 and truth - 1e-12 <= high for low, high in ends) / draws
    assert held > 0.935
    if n == 200 and min(accuracies) >= 0.3:
        assert held < 0.975
