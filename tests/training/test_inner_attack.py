"""Tests of the inner attack."""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from robustbench_vlm.attacks.projections import distance
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.mini import SCENES
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.base import InnerAttack, LossContext
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.mini import MINI
from robustbench_vlm.training.inner_attack import inner_attack

THREAT = Threat("Linf", Fraction(8, 255))


def _context() -> LossContext:
    torch.manual_seed(0)
    model = Model("random", "0", MINI.build().eval().requires_grad_(False), MINI)
    student, teacher = ImageEncoder(folded(model.network.visual), MINI).eval(), model.encoder
    images = SCENES.open().read(range(6)).float() / 255
    text, keys = model.text_features(SCENES.prompts[:20]), sample_keys(0, "t", list("abcdef"))
    return LossContext(
        images, torch.arange(6), keys, student, teacher, lambda: teacher(images).detach(), text, AGFT.settings,
        student.dense, teacher.dense,
    )  # fmt: skip


@pytest.mark.parametrize("name", DEFENSES.names())
def test_the_inner_attack_raises_the_loss_inside_the_ball(name: str) -> None:
    defense, context = DEFENSES.load(name), _context()
    context = dataclasses.replace(context, settings=defense.settings)
    adversarial = inner_attack(context, defense.inner, THREAT)
    assert (distance(THREAT, context.images, adversarial) <= 8 / 255 + 1e-6).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    with torch.no_grad():
        before, after = (defense.inner.loss(context, images) for images in (context.images, adversarial))
    assert (after > before).all()


def test_the_inner_attack_does_not_depend_on_other_samples() -> None:
    context = _context()
    whole = inner_attack(context, AGFT.inner, THREAT)
    part = {field: getattr(context, field)[2:3] for field in ("images", "labels", "keys")}
    alone = dataclasses.replace(context, **part, teacher_clean=lambda: context.teacher_clean()[2:3])
    difference = (inner_attack(alone, AGFT.inner, THREAT) - whole[2:3]).abs()
    # A sign may differ only if the gradient is zero up to rounding.
    assert (difference > 1e-6).float().mean() < 0.01


def test_momentum_continues_if_the_gradient_is_zero() -> None:
    slope = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    context = dataclasses.replace(_context(), images=torch.full((6, 3, 32, 32), 0.5))
    calls = []

    def loss(context: LossContext, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (images * slope * (len(calls) == 1)).sum(dim=(1, 2, 3))

    ends = {}
    for momentum in (0.0, 0.9):
        calls.clear()
        inner = InnerAttack(loss, steps=3, step_size=Fraction(1), momentum=momentum)
        ends[momentum] = inner_attack(context, inner, THREAT) - 0.5
    assert torch.allclose(ends[0.9], (8 / 255 * slope).expand(6, 3, 32, 32), atol=1e-6)
    assert (ends[0.0].abs() < 8 / 255 - 1e-6).any()


def test_the_inner_attack_gives_weights_no_gradient() -> None:
    context = _context()
    context.student.requires_grad_(True)  # type: ignore[attr-defined]
    inner_attack(context, AGFT.inner, THREAT)
    assert all(parameter.grad is None for parameter in context.student.parameters())  # type: ignore[attr-defined]


def test_a_step_of_the_inner_attack_is_one_pass_and_the_teacher_passes_once() -> None:
    context, calls = _context(), {"student": 0, "teacher": 0}

    def counted(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def encoder(images: torch.Tensor) -> torch.Tensor:
            calls[name] += 1
            return getattr(context, name)(images)

        return encoder

    teacher = functools.cache(lambda: counted("teacher")(context.images).detach())
    watched = dataclasses.replace(context, student=counted("student"), teacher_clean=teacher)
    adversarial = inner_attack(watched, dataclasses.replace(AGFT.inner, steps=5), THREAT)
    assert calls == {"student": 5, "teacher": 1}
    AGFT.loss(watched, adversarial)
    assert calls == {"student": 6, "teacher": 1}
