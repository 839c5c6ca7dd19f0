"""Tests of optimizers and learning rate schedules against the formulas of the released codes."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.base import Schedule
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.tracks import TRACKS
from robustbench_vlm.training.optim import lr_at, make_optimizer
from robustbench_vlm.training.request import TrainingRequest, _schedule, _with_short_warmup

STEPS = 50_040


def test_the_cosine_of_agft_covers_the_whole_training() -> None:
    assert lr_at(AGFT.schedule, STEPS, 500) == pytest.approx(4e-4 * 0.5)
    for step in (1000, 25_020, STEPS - 1):
        assert lr_at(AGFT.schedule, STEPS, step) == pytest.approx(2e-4 * (1 + math.cos(math.pi * step / STEPS)))


def test_the_cosine_of_tecoa_covers_the_steps_after_the_warm_up() -> None:
    assert lr_at(TECOA.schedule, STEPS, 999) == lr_at(TECOA.schedule, STEPS, 1000) == pytest.approx(1e-5)
    assert lr_at(TECOA.schedule, STEPS, 1000 + (STEPS - 1000) // 2) == pytest.approx(5e-6)
    assert 0 < lr_at(TECOA.schedule, STEPS, STEPS - 1) < 1e-12


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    name=st.sampled_from(DEFENSES.names()),
    track=st.sampled_from(["mini", "zeroshot15"]),
    num_images=st.integers(256, 5000),
    epochs=st.integers(1, 12),
)
def test_the_learning_rate_of_a_training_of_any_length_comes_near_its_value(
    name: str, track: str, num_images: int, epochs: int
) -> None:
    request = TrainingRequest(name, track, epochs=epochs)
    schedule = _schedule(request, TRACKS.load(track), DEFENSES.load(name))
    short, changes = _with_short_warmup(schedule, request, num_images)
    steps = short.epochs * (num_images // short.batch_size)
    assert max(lr_at(short, steps, step) for step in range(steps)) > 0.85 * schedule.lr
    assert bool(changes) == (short != schedule) and dataclasses.replace(short, warmup=schedule.warmup) == schedule


@pytest.mark.parametrize("name", DEFENSES.names())
def test_the_warm_up_of_a_published_training_is_not_changed(name: str) -> None:
    for track in ("mini", "zeroshot15"):
        request = TrainingRequest(name, track)
        schedule = _schedule(request, TRACKS.load(track), DEFENSES.load(name))
        num_images = TRACKS.load(track).num_training_images or 1_281_167
        assert _with_short_warmup(schedule, request, num_images) == (schedule, ())


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers_have_the_settings_of_the_schedule(name: str, kind: type) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), Schedule(name, 1.0, 0.25, batch_size=1, warmup=0, epochs=1))
    assert isinstance(optimizer, kind) and optimizer.defaults["weight_decay"] == 0.25
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match="sgd, adamw"):
        make_optimizer(torch.nn.Linear(2, 2), Schedule("lion", 1.0, 0.0, batch_size=1, warmup=0, epochs=1))
