"""Tests of optimizers and learning rate schedules against the formulas of the released codes."""

import math

import pytest
import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.base import Schedule
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.training.optim import lr_at, make_optimizer

STEPS = 50_040


def test_the_cosine_of_agft_covers_the_whole_training() -> None:
    assert lr_at(AGFT.schedule, STEPS, 500) == pytest.approx(4e-4 * 0.5)
    for step in (1000, 25_020, STEPS - 1):
        assert lr_at(AGFT.schedule, STEPS, step) == pytest.approx(2e-4 * (1 + math.cos(math.pi * step / STEPS)))


def test_the_cosine_of_tecoa_covers_the_steps_after_the_warm_up() -> None:
    assert lr_at(TECOA.schedule, STEPS, 999) == lr_at(TECOA.schedule, STEPS, 1000) == pytest.approx(1e-5)
    assert lr_at(TECOA.schedule, STEPS, 1000 + (STEPS - 1000) // 2) == pytest.approx(5e-6)
    assert 0 < lr_at(TECOA.schedule, STEPS, STEPS - 1) < 1e-12


def test_a_training_may_be_shorter_than_its_warm_up() -> None:
    assert [lr_at(AGFT.schedule, 2, step) for step in range(2)] == pytest.approx([0, 4e-7])


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers_have_the_settings_of_the_schedule(name: str, kind: type) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), Schedule(name, 1.0, 0.25, batch_size=1, warmup=0, epochs=1))
    assert isinstance(optimizer, kind) and optimizer.defaults["weight_decay"] == 0.25
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match="sgd, adamw"):
        make_optimizer(torch.nn.Linear(2, 2), Schedule("lion", 1.0, 0.0, batch_size=1, warmup=0, epochs=1))
