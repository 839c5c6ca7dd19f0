"""Tests of the trial that a sweep chooses, and of the trials that it does not repeat."""

from fractions import Fraction
from pathlib import Path

import pytest

from robustbench_vlm.core.progress import ignore_progress
from robustbench_vlm.training import sweep
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime
from robustbench_vlm.training.request import TrainingRequest, make_sweep_job, vary, with_images
from robustbench_vlm.training.sweep import Sweep, Trial, run_sweep


def _sweep(*accuracies: tuple[float | None, float | None], held_out: int = 1024) -> Sweep:
    trials = [Trial({"lr": rate}, clean, robust, 1.0) for rate, (clean, robust) in enumerate(accuracies)]
    return Sweep(None, tuple(trials), held_out)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([(0.5, 0.1), (0.6, 0.5), (0.5, 0.2)], 1),
        # The highest score is 0.65 with a standard error of 0.0135: 0.64 is within it, 0.63 is not.
        ([(0.73, 0.53), (0.74, 0.54), (0.75, 0.55)], 1),
        ([(None, None), (0.3, 0.1)], 1),
        ([(0.5, 0.5), (None, None)], 0),
    ],
)
def test_the_first_trial_within_a_standard_error_of_the_highest_is_chosen(
    accuracies: list[tuple[float | None, float | None]], chosen: int
) -> None:
    assert _sweep(*accuracies).best == _sweep(*accuracies).trials[chosen]


def test_no_trial_is_chosen_if_all_diverged() -> None:
    assert _sweep((None, None)).best is None


def test_the_standard_error_is_that_of_the_scores_of_samples() -> None:
    scores = [0.0] * 4 + [0.5] * 3 + [1.0] * 3
    mean = sum(scores) / 10
    variance = sum((score - mean) ** 2 for score in scores) / 10
    assert Trial({}, 0.6, 0.3, 1.0).standard_error(10) == pytest.approx((variance / 10) ** 0.5)


@pytest.mark.parametrize("num_images", [128, 1000, 5000, 20_000])
def test_the_warm_up_fits_a_training_on_a_part_of_the_images(num_images: int) -> None:
    request = TrainingRequest("tecoa", "mini", epochs=1)
    whole, _ = make_sweep_job(request)
    part = with_images(whole, request, whole.images.slice(0, num_images))
    assert part.schedule.warmup == min(100, part.steps // 4) and bool(part.changes) == (part.schedule.warmup < 100)
    assert vary(part, request, {"lr": 0.5}).schedule.warmup == part.schedule.warmup
    assert vary(part, request, {"batch_size": 64}).schedule.warmup == min(100, num_images // 64 // 4)


def test_a_stored_trial_is_used_only_for_the_same_training_and_held_out_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measurement(job: object, held_out: sweep.TrainingImages) -> sweep.Measure:
        def measure(encoder: object) -> tuple[float, float]:
            measured.append(held_out.digest)
            return 0.5, 0.25

        return measure

    monkeypatch.setattr(sweep, "finetune", lambda *arguments: (None, 0.0))
    monkeypatch.setattr(sweep, "_measurement", measurement)
    # Half of 512 images and all of 256 images are the same training, but the held-out images differ.
    for num_images, fraction, expected in ((512, "1/2", 1), (512, "1/2", 1), (256, "1", 2)):
        request = TrainingRequest("tecoa", "mini", epochs=1, num_images=num_images)
        run_sweep(request, {"lr": [1e-3]}, Fraction(fraction), Runtime(tmp_path, Processes("cpu")), ignore_progress)
        assert len(measured) == expected
    assert len(set(measured)) == 2 and len(list(tmp_path.glob("*/trial.json"))) == 1
