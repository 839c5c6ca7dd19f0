"""The recipes' losses and gradients against closed forms."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.defense import Context, logits
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.training.pretraining import contrastive_loss

DOUBLE = torch.float64


def _context(weights: Tensor, labels: Tensor, **settings: float) -> Context:
    """A linear student on flattened images against a frozen random teacher; five classes in six dimensions."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(12, 6, generator=generator, dtype=DOUBLE)
    images = torch.rand(len(labels), 3, 2, 2, generator=generator, dtype=DOUBLE)
    text = functional.normalize(torch.randn(5, 6, generator=generator, dtype=DOUBLE), dim=1)
    return Context(
        images, labels, lambda x: x.flatten(1) @ weights, lambda x: x.flatten(1) @ teacher,
        images.flatten(1) @ teacher, text, settings,
    )  # fmt: skip


def _weights() -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE, requires_grad=True)


LABELS = torch.tensor([0, 4, 2, 2])


def test_logits_are_scaled_cosines() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    values = logits(torch.tensor([[3.0, 4.0]]), text, 100.0)
    assert torch.allclose(values, torch.tensor([[60.0, 80.0]]))


def test_tecoa_is_cross_entropy_by_hand() -> None:
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: torch.tensor([[3.0, 4.0]]),
        text_features=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        settings={"scale": 10.0},
    )
    expected = math.log(1 + math.exp(6 - 8))
    assert TECOA.loss(context, context.images).item() == pytest.approx(expected, rel=1e-5)


def test_agft_is_the_soft_cross_entropy_by_hand() -> None:
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: torch.tensor([[3.0, 4.0]]),
        teacher_clean=torch.tensor([[4.0, 3.0]]),
        text_features=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        settings={"scale": 10.0, "gamma": 0.5},
    )
    target = 1 / (1 + math.exp(0.5 * (6 - 8)))  # of class 0: the teacher's logits are 4 and 3 at scale 5
    expected = target * math.log(1 + math.exp(8 - 6)) + (1 - target) * math.log(1 + math.exp(6 - 8))
    assert AGFT.loss(context, context.images).item() == pytest.approx(expected, rel=1e-5)


@given(st.floats(0.1, 1.0), st.floats(1.0, 200.0))
@settings(deadline=None, max_examples=25)
def test_agft_is_the_divergence_from_the_softened_teacher_up_to_its_entropy(gamma: float, scale: float) -> None:
    context = _context(_weights(), LABELS, scale=scale, gamma=gamma)
    teacher = logits(context.teacher_clean, context.text_features, gamma * scale).softmax(dim=1)
    student = logits(context.student(context.images), context.text_features, scale).log_softmax(dim=1)
    divergence = functional.kl_div(student, teacher, reduction="none").sum(dim=1)
    entropy = torch.special.entr(teacher).sum(dim=1)
    assert torch.allclose(AGFT.loss(context, context.images), divergence + entropy, atol=1e-9)


def test_agft_with_gamma_1_and_scale_100_is_plain_distillation() -> None:
    weights = _weights()
    context = _context(weights, LABELS, scale=100.0, gamma=1.0)
    teacher = logits(context.teacher_clean, context.text_features, 100.0).softmax(dim=1)
    student = logits(context.student(context.images), context.text_features, 100.0)
    plain = functional.cross_entropy(student, teacher, reduction="none")
    ours = AGFT.loss(context, context.images)
    assert torch.allclose(ours, plain)
    gradients = [torch.autograd.grad(loss.sum(), weights, retain_graph=True)[0] for loss in (ours, plain)]
    assert torch.allclose(*gradients)


def test_agft_with_a_one_hot_teacher_is_tecoa() -> None:
    weights = _weights()
    context = _context(weights, LABELS, scale=100.0, gamma=1e6)
    certain = dataclasses.replace(context, teacher_clean=context.text_features[LABELS])
    losses = [AGFT.loss(certain, certain.images), TECOA.loss(certain, certain.images)]
    assert torch.allclose(*losses)
    gradients = [torch.autograd.grad(loss.sum(), weights, retain_graph=True)[0] for loss in losses]
    assert torch.allclose(*gradients)


def test_the_gradient_of_agft_at_the_logits_is_the_difference_of_the_predictions() -> None:
    student = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=DOUBLE, requires_grad=True)
    context = dataclasses.replace(_context(_weights(), LABELS, scale=7.0, gamma=0.4), student=lambda images: student)
    unit = functional.normalize(student.detach(), dim=1)
    q = (7.0 * unit @ context.text_features.T).softmax(dim=1)
    p = logits(context.teacher_clean, context.text_features, 2.8).softmax(dim=1)
    at_unit = 7.0 * (q - p) @ context.text_features
    expected = (at_unit - (at_unit * unit).sum(1, keepdim=True) * unit) / student.detach().norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(AGFT.loss(context, context.images).sum(), student)
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("name", DEFENSES.names())
def test_a_loss_is_one_number_a_sample_of_that_sample_alone(name: str) -> None:
    defense = DEFENSES.load(name)
    context = _context(_weights(), LABELS, **defense.settings)
    whole = defense.loss(context, context.images)
    assert whole.shape == (4,)
    part = dataclasses.replace(
        context, images=context.images[1:2], labels=LABELS[1:2], teacher_clean=context.teacher_clean[1:2]
    )
    assert torch.allclose(defense.loss(part, part.images), whole[1:2])


def test_the_contrastive_loss_by_hand_and_without_true_negatives() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    loss = contrastive_loss(images, images, torch.tensor(3.0), nothing)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
    both_true = torch.ones(2, 2, dtype=torch.bool)
    assert contrastive_loss(images, images, torch.tensor(3.0), both_true).item() == 0
