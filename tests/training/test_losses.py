"""Comparison of the losses of the defenses and their gradients with closed forms."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.defenses.base import LossContext, logits
from robustbench_vlm.defenses.fare import FARE
from robustbench_vlm.defenses.gladiator import GLADIATOR, spectral_entropy, worst_texts
from robustbench_vlm.defenses.pmg_aft import PMG_AFT
from robustbench_vlm.defenses.sim_clip import SIM_CLIP
from robustbench_vlm.defenses.tecoa import TECOA
from robustbench_vlm.defenses.tga_zsr import TGA_ZSR, attention
from robustbench_vlm.training.pretrain import contrastive_loss

DOUBLE = torch.float64


def _context(weights: Tensor, labels: Tensor, **settings: float) -> LossContext:
    """Return a context with a linear student, a random linear teacher, 5 classes and embeddings of 6 dimensions."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(12, 6, generator=generator, dtype=DOUBLE)
    images = torch.rand(len(labels), 3, 2, 2, generator=generator, dtype=DOUBLE)
    text = functional.normalize(torch.randn(5, 6, generator=generator, dtype=DOUBLE), dim=1)
    # An image has four pixels. Each pixel is a patch, which the first three rows of the weights encode.
    return LossContext(
        images, labels, sample_keys(0, "t", [str(n) for n in range(len(labels))]),
        lambda x: x.flatten(1) @ weights, lambda x: x.flatten(1) @ teacher,
        lambda: images.flatten(1) @ teacher, text, settings,
        student_dense=lambda x: (x.flatten(1) @ weights, x.flatten(2).transpose(1, 2) @ weights[:3]),
        teacher_dense=lambda x: (x.flatten(1) @ teacher, x.flatten(2).transpose(1, 2) @ teacher[:3]),
    )  # fmt: skip


def _weights() -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE, requires_grad=True)


LABELS = torch.tensor([0, 4, 2, 2])


def test_logits_are_scaled_cosines() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    values = logits(torch.tensor([[3.0, 4.0]]), text, 100.0)
    assert torch.allclose(values, torch.tensor([[60.0, 80.0]]))


def test_tecoa_matches_the_closed_form() -> None:
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: torch.tensor([[3.0, 4.0]]),
        text_features=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        settings={"scale": 10.0},
    )
    expected = math.log(1 + math.exp(6 - 8))
    assert TECOA.loss(context, context.images).item() == pytest.approx(expected, rel=1e-5)


def test_agft_matches_the_closed_form() -> None:
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: torch.tensor([[3.0, 4.0]]),
        teacher_clean=lambda: torch.tensor([[4.0, 3.0]]),
        text_features=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        settings={"scale": 10.0, "gamma": 0.5},
    )
    target = 1 / (1 + math.exp(0.5 * (6 - 8)))  # the teacher's probability of class 0, with logits 4 and 3
    expected = target * math.log(1 + math.exp(8 - 6)) + (1 - target) * math.log(1 + math.exp(6 - 8))
    assert AGFT.loss(context, context.images).item() == pytest.approx(expected, rel=1e-5)


def test_fare_and_its_gradient_match_the_closed_form() -> None:
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: student,
        teacher_clean=lambda: torch.tensor([[1.0, 1.0]]),
    )
    loss = FARE.loss(context, context.images)
    assert loss.tolist() == [13.0]
    assert torch.autograd.grad(loss.sum(), student)[0].tolist() == [[4.0, 6.0]]


def test_sim_clip_and_its_gradient_match_the_closed_form() -> None:
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1])),
        student=lambda images: student,
        teacher_clean=lambda: torch.tensor([[2.0, 0.0]]),
    )
    loss = SIM_CLIP.loss(context, context.images)
    assert loss.item() == pytest.approx(-0.6)
    # d cos / d f = (t - cos f / |f|) / |f|, with t and f / |f| = (1, 0) and (0.6, 0.8).
    expected = -0.5 * torch.tensor([[(1 - 0.36) / 5, -0.48 / 5]])
    assert torch.allclose(torch.autograd.grad(loss.sum(), student)[0], expected)


def _two_classes(attacked: list[float], clean: list[float], frozen: list[float], **numbers: float) -> LossContext:
    """Return a context of one image with given embeddings. The adversarial image is all 1, the clean one all 0."""

    def encoder(one: list[float], zero: list[float]) -> Callable[[Tensor], Tensor]:
        return lambda images: torch.tensor([one if images.max() == 1 else zero], dtype=DOUBLE)

    return dataclasses.replace(
        _context(_weights(), torch.tensor([1]), scale=5.0, alpha=0.0, beta=0.0, detach=0.0, **numbers),
        images=torch.zeros(1, 3, 2, 2, dtype=DOUBLE),
        student=encoder(attacked, clean),
        teacher=encoder(frozen, [1.0, 0.0]),
        text_features=torch.eye(2, dtype=DOUBLE),
    )


def test_each_term_of_pmg_aft_matches_the_closed_form() -> None:
    attacked, images = torch.tensor([0.6, 0.8], dtype=DOUBLE), torch.ones(1, 3, 2, 2, dtype=DOUBLE)
    context = _two_classes([3.0, 4.0], [0.0, 1.0], [4.0, 3.0])
    p = (5 * attacked).softmax(0)
    labelled = -p[1].log()
    assert torch.allclose(PMG_AFT.loss(context, images)[0], labelled)
    for name, target in (("alpha", [0.8, 0.6]), ("beta", [0.0, 1.0])):
        q = (5 * torch.tensor(target, dtype=DOUBLE)).softmax(0)
        expected = labelled + 2 * (q * (q / p).log()).sum()
        term = dataclasses.replace(context, settings={**context.settings, name: 2.0})
        assert torch.allclose(PMG_AFT.loss(term, images)[0], expected)


def test_pmg_aft_without_divergences_is_tecoa_and_the_teacher_gets_no_gradient() -> None:
    weights = _weights()
    context = _context(weights, LABELS, **{**PMG_AFT.settings, "alpha": 0.0, "beta": 0.0})
    images = (context.images + 0.01).requires_grad_()
    assert torch.allclose(PMG_AFT.loss(context, images), TECOA.loss(context, images))
    full = dataclasses.replace(context, settings=PMG_AFT.settings)
    frozen = torch.randn(12, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(3), requires_grad=True)
    watched = dataclasses.replace(full, teacher=lambda x: x.flatten(1) @ frozen)
    gradients = torch.autograd.grad(PMG_AFT.loss(watched, images).sum(), [weights, frozen], allow_unused=True)
    assert gradients[0].abs().max() > 0 and gradients[1] is None


def test_detach_stops_the_gradient_of_clean_predictions_in_pmg_aft() -> None:
    weights = _weights()
    context = _context(weights, LABELS, **{**PMG_AFT.settings, "alpha": 0.0, "scale": 5.0})
    held = dataclasses.replace(context, settings={**context.settings, "detach": 1.0})
    images = context.images + 0.01
    losses = [PMG_AFT.loss(each, images) for each in (context, held)]
    assert torch.equal(*losses)
    free, detached = (torch.autograd.grad(loss.sum(), weights)[0] for loss in losses)
    assert not torch.allclose(free, detached)


def test_attention_maps_are_scaled_to_the_unit_range_and_resized() -> None:
    places = torch.tensor([[[1.0, 0.0], [2.0, 5.0], [3.0, 0.0], [5.0, 1.0]]])
    text = torch.tensor([[1.0, 0.0]])
    assert attention(places, text, (2, 2)).tolist() == [[[0.0, 0.25], [0.5, 1.0]]]
    assert attention(places, text, (6, 6)).shape == (1, 6, 6)
    # The text selects the first feature. Dividing it by its norm over the patches does not change the scaled map.
    assert torch.allclose(attention(places, text, (2, 2), over_places=True), attention(places, text, (2, 2)))
    slanted = torch.tensor([[0.6, 0.8]])
    assert not torch.allclose(attention(places, slanted, (2, 2), over_places=True), attention(places, slanted, (2, 2)))


def test_each_term_of_tga_zsr_matches_the_closed_form() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    steep, flat = [0.0, 1.0, 2.0, 4.0], [0.0, 4.0, 4.0, 4.0]

    def encoder(attacked: list[float], clean: list[float]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        def dense(images: Tensor) -> tuple[Tensor, Tensor]:
            second = torch.tensor(attacked if images.max() == 1 else clean, dtype=DOUBLE)
            return torch.tensor([[3.0, 4.0]], dtype=DOUBLE), torch.stack([torch.zeros(4), second], dim=1)[None]

        return dense

    settings = {"scale": 10.0, "alpha": 0.0, "beta": 0.0, "over_places": 0.0}
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1]), **settings),
        images=torch.zeros(1, 3, 2, 2, dtype=DOUBLE),
        text_features=text,
        student_dense=encoder(steep, flat),
        teacher_dense=encoder(flat, steep),
    )
    images = torch.ones(1, 3, 2, 2, dtype=DOUBLE)
    labelled = math.log(1 + math.exp(6 - 8))
    apart = math.sqrt(0.75**2 + 0.5**2)  # the distance of the maps (0, 1/4, 1/2, 1) and (0, 1, 1, 1)
    # The map of the teacher is always that of the clean image. It equals the student's map of the adversarial image.
    for name, expected in (("scale", labelled), ("alpha", labelled), ("beta", labelled + 2 * apart)):
        term = dataclasses.replace(context, settings={**settings, **({} if name == "scale" else {name: 2.0})})
        assert TGA_ZSR.loss(term, images).item() == pytest.approx(expected, abs=1e-5)


@given(st.floats(0.1, 1.0), st.floats(1.0, 200.0))
@settings(deadline=None, max_examples=25)
def test_agft_is_the_divergence_from_the_softened_teacher_plus_its_entropy(gamma: float, scale: float) -> None:
    context = _context(_weights(), LABELS, scale=scale, gamma=gamma)
    teacher = logits(context.teacher_clean(), context.text_features, gamma * scale).softmax(dim=1)
    student = logits(context.student(context.images), context.text_features, scale).log_softmax(dim=1)
    divergence = functional.kl_div(student, teacher, reduction="none").sum(dim=1)
    entropy = torch.special.entr(teacher).sum(dim=1)
    assert torch.allclose(AGFT.loss(context, context.images), divergence + entropy, atol=1e-9)


def test_agft_with_gamma_1_and_scale_100_is_plain_distillation() -> None:
    weights = _weights()
    context = _context(weights, LABELS, scale=100.0, gamma=1.0)
    teacher = logits(context.teacher_clean(), context.text_features, 100.0).softmax(dim=1)
    student = logits(context.student(context.images), context.text_features, 100.0)
    plain = functional.cross_entropy(student, teacher, reduction="none")
    ours = AGFT.loss(context, context.images)
    assert torch.allclose(ours, plain)
    gradients = [torch.autograd.grad(loss.sum(), weights, retain_graph=True)[0] for loss in (ours, plain)]
    assert torch.allclose(*gradients)


def test_agft_with_a_one_hot_teacher_is_tecoa() -> None:
    weights = _weights()
    context = _context(weights, LABELS, scale=100.0, gamma=1e6)
    certain = dataclasses.replace(context, teacher_clean=lambda: context.text_features[LABELS])
    losses = [AGFT.loss(certain, certain.images), TECOA.loss(certain, certain.images)]
    assert torch.allclose(*losses)
    gradients = [torch.autograd.grad(loss.sum(), weights, retain_graph=True)[0] for loss in losses]
    assert torch.allclose(*gradients)


def test_the_gradient_of_agft_at_the_logits_is_the_difference_of_the_predictions() -> None:
    student = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=DOUBLE, requires_grad=True)
    context = dataclasses.replace(_context(_weights(), LABELS, scale=7.0, gamma=0.4), student=lambda images: student)
    unit = functional.normalize(student.detach(), dim=1)
    q = (7.0 * unit @ context.text_features.T).softmax(dim=1)
    p = logits(context.teacher_clean(), context.text_features, 2.8).softmax(dim=1)
    at_unit = 7.0 * (q - p) @ context.text_features
    expected = (at_unit - (at_unit * unit).sum(1, keepdim=True) * unit) / student.detach().norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(AGFT.loss(context, context.images).sum(), student)
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("name", DEFENSES.names())
def test_the_loss_of_a_sample_does_not_depend_on_other_samples(name: str) -> None:
    defense = DEFENSES.load(name)
    context = _context(_weights(), LABELS, **defense.settings)
    whole = defense.loss(context, context.images)
    assert whole.shape == (4,)
    part = dataclasses.replace(
        context,
        images=context.images[1:2],
        labels=LABELS[1:2],
        keys=context.keys[1:2],
        teacher_clean=lambda: context.teacher_clean()[1:2],
    )
    own = defense.inner.loss if defense.batchwise else defense.loss
    assert torch.allclose(own(part, part.images), own(context, context.images)[1:2])


@pytest.mark.parametrize("name", DEFENSES.names())
def test_only_the_student_gets_a_gradient(name: str) -> None:
    defense, weights = DEFENSES.load(name), _weights()
    context = _context(weights, LABELS, **defense.settings)
    frozen = torch.randn(12, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(3), requires_grad=True)
    # The training loop passes features of the clean images without a gradient, so only other uses can leak one.
    watched = dataclasses.replace(
        context,
        teacher=lambda x: x.flatten(1) @ frozen,
        teacher_clean=lambda: (context.images.flatten(1) @ frozen).detach(),
        teacher_dense=lambda x: (x.flatten(1) @ frozen, x.flatten(2).transpose(1, 2) @ frozen[:3]),
    )
    losses = defense.loss(watched, context.images + 0.01)
    student, teacher = torch.autograd.grad(losses.sum(), [weights, frozen], allow_unused=True)
    assert student.abs().max() > 0 and teacher is None
    assert not context.text_features.requires_grad


def test_worst_texts_are_worse_than_random_ones_and_are_reached() -> None:
    generator = torch.Generator().manual_seed(0)
    image = functional.normalize(torch.randn(6, generator=generator, dtype=DOUBLE), dim=0)
    texts = functional.normalize(torch.randn(2, 6, generator=generator, dtype=DOUBLE), dim=1)
    rho = 0.3
    lowest, highest = worst_texts((texts @ image)[None], torch.tensor([0]), rho)[0]
    moves = rho * functional.normalize(torch.randn(20_000, 6, generator=generator, dtype=DOUBLE), dim=1)
    tried = functional.normalize(texts[:, None] + moves, dim=2) @ image
    assert tried[0].min() >= lowest and tried[1].max() <= highest
    # The step that rotates a unit vector furthest is perpendicular to the resulting vector.
    for text, sign, expected in ((texts[0], -1, lowest), (texts[1], 1, highest)):
        across = functional.normalize(image - (image @ text) * text, dim=0) * sign
        step = rho * (across * math.sqrt(1 - rho**2) - rho * text)
        assert torch.allclose(functional.normalize(text + step, dim=0) @ image, expected)


def test_worst_texts_stop_at_cosines_of_one_and_minus_one() -> None:
    cosines = torch.tensor([[-1.0, 1.0, 0.999]], dtype=DOUBLE)
    assert torch.allclose(worst_texts(cosines, torch.tensor([0]), 0.2), torch.tensor([[-1.0, 1.0, 1.0]], dtype=DOUBLE))
    still = torch.tensor([[0.3, -0.4, 0.5]], dtype=DOUBLE)
    assert torch.allclose(worst_texts(still, torch.tensor([1]), 0.0), still)


def test_the_exponential_of_the_spectral_entropy_is_the_rank() -> None:
    for rank in (1, 3, 6):
        moment = torch.diag(torch.tensor([1.0 / rank] * rank + [0.0] * (6 - rank), dtype=DOUBLE))
        assert spectral_entropy(moment).exp().item() == pytest.approx(rank, rel=1e-6)


def test_each_term_of_gladiator_matches_the_closed_form() -> None:
    settings = {"scale": 10.0, "rho": 0.0, "sigma": 0.0, "rank": 0.0}
    features = torch.tensor([[3.0, 4.0], [4.0, -3.0]], dtype=DOUBLE, requires_grad=True)
    context = dataclasses.replace(
        _context(_weights(), torch.tensor([1, 0]), **settings),
        student=lambda images: features,
        text_features=torch.eye(2, dtype=DOUBLE),
    )

    def losses(**changes: float) -> Tensor:
        changed = dataclasses.replace(context, settings={**settings, **changes})
        return GLADIATOR.loss(changed, context.images)

    plain = [math.log(1 + math.exp(6 - 8)), math.log(1 + math.exp(-6 - 8))]
    assert torch.allclose(losses(), torch.tensor(plain, dtype=DOUBLE))
    # The second moment of two orthogonal unit embeddings has two equal eigenvalues, so its entropy is log 2.
    assert torch.allclose(losses(rank=2.0), losses() - 2 * math.log(2))
    turned = [
        0.6 * 0.8 + 0.8 * 0.6,
        0.8 * 0.8 - 0.6 * 0.6,
    ]  # cosines after the rotations, whose sine is 0.6
    assert losses(rho=0.6)[0].item() == pytest.approx(math.log(1 + math.exp(10 * (turned[0] - turned[1]))))
    noise = randomness.normal(randomness.derive(context.keys, "feature noise"), 0, (2,)).to(DOUBLE)
    noisy = functional.normalize(features * (1 + 0.5 * noise), dim=1)
    assert torch.allclose(losses(sigma=0.5), functional.cross_entropy(10 * noisy, context.labels, reduction="none"))


def test_gladiator_with_zero_settings_is_tecoa_and_its_attack_has_no_noise() -> None:
    context = _context(_weights(), LABELS, scale=100.0, rho=0.0, sigma=0.0, rank=0.0)
    assert torch.allclose(GLADIATOR.loss(context, context.images), TECOA.loss(context, context.images))
    loud = dataclasses.replace(context, settings={**context.settings, "sigma": 0.5, "rank": 1.0})
    assert torch.allclose(GLADIATOR.inner.loss(loud, context.images), TECOA.loss(context, context.images))


def test_the_contrastive_loss_matches_the_closed_form() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    loss = contrastive_loss(images, images, torch.tensor(3.0), nothing)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
    both_true = torch.ones(2, 2, dtype=torch.bool)
    assert contrastive_loss(images, images, torch.tensor(3.0), both_true).item() == 0
