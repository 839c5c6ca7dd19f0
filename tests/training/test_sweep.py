"""Which trial of a sweep is taken."""

import pytest

from robustbench_vlm.training.sweep import Sweep, Trial


def _sweep(*accuracies: tuple[float | None, float | None], held_out: int = 1024) -> Sweep:
    trials = [Trial({"lr": rate}, clean, robust, 1.0) for rate, (clean, robust) in enumerate(accuracies)]
    return Sweep(None, tuple(trials), held_out)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([(0.5, 0.1), (0.6, 0.5), (0.5, 0.2)], 1),
        # 0.65 +- 0.0135 on 1024 images: 0.64 cannot be told from it, and 0.63 can.
        ([(0.73, 0.53), (0.74, 0.54), (0.75, 0.55)], 1),
        ([(None, None), (0.3, 0.1)], 1),
        ([(0.5, 0.5), (None, None)], 0),
    ],
)
def test_the_first_within_a_standard_error_of_the_highest_is_taken(
    accuracies: list[tuple[float | None, float | None]], chosen: int
) -> None:
    assert _sweep(*accuracies).best == _sweep(*accuracies).trials[chosen]


def test_nothing_is_taken_where_all_diverged() -> None:
    assert _sweep((None, None)).best is None


def test_the_standard_error_is_that_of_the_samples_scores() -> None:
    scores = [0.0] * 4 + [0.5] * 3 + [1.0] * 3
    mean = sum(scores) / 10
    variance = sum((score - mean) ** 2 for score in scores) / 10
    assert Trial({}, 0.6, 0.3, 1.0).standard_error(10) == pytest.approx((variance / 10) ** 0.5)
