"""Test diagnostics: closed forms on small encoders, images inside the radius, and independence of the batch."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.analysis.diagnose import (
    Diagnoses,
    diagnose,
    effective_rank,
    final_image_stage,
    final_images,
    gradient_norms,
    measure_batch,
    modality_gap,
)
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.projections import distance
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.models.classifier import ZeroShotClassifier

EPS = Fraction(8, 255)
PGD = final_image_stage(load_attack("pgd-10"))
PIXELS = 3 * 4 * 4


def batch_of(count: int = 12, norm: str = "Linf", eps: Fraction = EPS) -> Batch:
    """Return samples with pixels far from 0 and 1, and labels that do not depend on the images."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(count) % 3
    keys = sample_keys(0, "made-up", [str(n) for n in range(count)])
    return Batch(images, labels, keys, Threat(norm, eps), torch.full_like(labels, 3))


def small_classifier(dimensions: int = 5) -> ZeroShotClassifier:
    """Return a small nonlinear classifier of three classes."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    linear = nn.Linear(PIXELS, dimensions, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(random(dimensions, PIXELS))
        linear.bias.copy_(random(dimensions))
    encoder = nn.Sequential(nn.Flatten(), linear, nn.Tanh())
    return ZeroShotClassifier(encoder, functional.normalize(random(3, dimensions), dim=-1), 10.0).requires_grad_(False)


def linear_logits(weights: Tensor) -> Any:
    return lambda images: images.flatten(1) @ weights.T


@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_effective_rank_of_orthonormal_and_of_equal_features(count: int) -> None:
    square = torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    orthonormal = torch.linalg.qr(square).Q[:count]
    assert effective_rank(orthonormal) == pytest.approx(count, abs=1e-9)
    assert effective_rank(orthonormal[:1].repeat(count, 1)) == pytest.approx(1, abs=1e-6)


def test_the_effective_rank_of_directions_with_different_counts() -> None:
    # Three features along one axis and one along another: the singular values are sqrt(3) and 1.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    shares = [math.sqrt(3) / (math.sqrt(3) + 1), 1 / (math.sqrt(3) + 1)]
    assert effective_rank(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_the_modality_gap_equals_a_manual_computation() -> None:
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # The means are (1/2, 1/2) and (-2/3, 1/3).
    assert modality_gap(images, texts) == pytest.approx(math.hypot(7 / 6, 1 / 6))
    assert modality_gap(images, images.flip(0)) == 0
    assert modality_gap(images[:1], -images[:1]) == 2


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_gradient_norm_of_a_linear_classifier_equals_the_closed_form(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = scale * torch.randn(2, PIXELS, generator=generator, dtype=torch.float64)
    batch = batch_of()
    labels = batch.labels % 2
    norms, logits = gradient_norms(linear_logits(weights), batch.images, labels)
    wrong = logits.softmax(dim=1).gather(1, 1 - labels[:, None]).squeeze(1)
    assert torch.allclose(norms, wrong * (weights[1] - weights[0]).norm(), rtol=1e-10)
    assert torch.equal(logits, linear_logits(weights)(batch.images))


def test_the_gradient_norm_is_that_of_the_cross_entropy() -> None:
    batch, classifier = batch_of(), small_classifier()
    leaf = batch.images.clone().requires_grad_()
    functional.cross_entropy(classifier(leaf), batch.labels, reduction="sum").backward()
    assert leaf.grad is not None
    norms, _ = gradient_norms(classifier, batch.images, batch.labels)
    assert torch.allclose(norms, leaf.grad.flatten(1).norm(dim=1), rtol=1e-10)


def test_a_nan_gradient_raises_user_error() -> None:
    def logits(images: Tensor) -> Tensor:
        brightness = images.flatten(1).sum(dim=1)
        return torch.stack([brightness, (brightness - brightness.detach()).sqrt()], dim=1)

    with pytest.raises(UserError, match="at 12 of 12 images"):
        gradient_norms(logits, batch_of().images, torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd-10", "cw"])
def test_every_sample_changes_and_stays_within_the_radius(norm: str, attack: str) -> None:
    batch, classifier = batch_of(norm=norm), small_classifier()
    # Some samples are misclassified without an attack. An evaluation would not attack them.
    assert 0 < int((classifier(batch.images).argmax(dim=1) != batch.labels).sum()) < 12
    found = final_images(classifier, batch, final_image_stage(load_attack(attack)), batch_size=5)
    moved = distance(batch.threat, batch.images, found)
    assert bool((moved > 0).all()) and bool((moved <= float(EPS) + 1e-12).all())
    assert bool((found >= 0).all()) and bool((found <= 1).all())


def test_an_attack_on_a_linear_classifier_ends_in_the_corner_of_the_ball() -> None:
    generator = torch.Generator().manual_seed(4)
    weights = 100 * torch.randn(2, PIXELS, generator=generator, dtype=torch.float64)
    batch = replace(batch_of(), labels=torch.zeros(12, dtype=torch.int64), num_classes=torch.full((12,), 2))
    found = final_images(linear_logits(weights), batch, PGD, batch_size=12)
    corner = batch.images + float(EPS) * (weights[1] - weights[0]).sign().view(1, 3, 4, 4)
    assert torch.allclose(found, corner, atol=1e-12)


def test_the_random_start_depends_on_keys_and_stage_name() -> None:
    batch, flat = batch_of(), linear_logits(torch.zeros(3, PIXELS, dtype=torch.float64))
    first, again = (final_images(flat, batch, PGD, batch_size=size) for size in (12, 4))
    other = final_images(flat, replace(batch, keys=batch.keys + 1), PGD, batch_size=12)
    renamed = final_images(flat, batch, replace(PGD, name="other"), batch_size=12)
    assert torch.equal(first, again)
    assert bool((first != other).flatten(1).any(dim=1).all())
    assert bool((first != renamed).flatten(1).any(dim=1).all())


def test_measurements_do_not_depend_on_the_batch() -> None:
    batch, classifier = batch_of(), small_classifier()
    whole = measure_batch(classifier, batch, PGD)
    parts = [measure_batch(classifier, batch.at(index), PGD) for index in torch.arange(12).split(5)]
    assert torch.equal(whole.correct, torch.cat([part.correct for part in parts]))
    assert torch.allclose(whole.gradient_norms, torch.cat([part.gradient_norms for part in parts]), rtol=1e-9)
    assert torch.allclose(whole.features, torch.cat([part.features for part in parts]), rtol=1e-9)


def test_at_radius_0_the_clean_images_are_measured() -> None:
    batch, classifier = batch_of(eps=Fraction(0)), small_classifier()
    found = measure_batch(classifier, batch, PGD)
    norms, logits = gradient_norms(classifier, batch.images, batch.labels)
    assert torch.equal(found.features, classifier.image_features(batch.images))
    assert torch.equal(found.gradient_norms, norms)
    assert torch.equal(found.correct, logits.argmax(dim=1) == batch.labels)


@pytest.mark.parametrize("name", ["autoattack", "apgd-ce", "square"])
def test_an_attack_that_stops_early_raises_user_error(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*--attack pgd-10"):
        final_image_stage(load_attack(name))


def found_with(batch_size: int) -> Diagnoses:
    return diagnose(
        Request(
            models=("clip",),
            attacks=("pgd-3",),
            datasets=("colours", "day-night"),
            eps=("0", "2/255"),
            samples=6,
            resources=Resources(device="cpu", workers=1, batch_size=batch_size),
        )
    )


def test_an_attack_lowers_the_accuracy_and_raises_the_gradient_norm() -> None:
    clean, hit = found_with(64).diagnoses
    assert (clean.model, clean.eps, hit.eps) == ("clip", "0/255", "2/255")
    assert hit.accuracy < clean.accuracy and hit.gradient_norm > clean.gradient_norm
    for each in (clean, hit):
        assert [(part.dataset, part.n) for part in each.datasets] == [("colours", 6), ("day-night", 6)]
        assert 1 <= each.effective_rank <= 12 and 0 < each.modality_gap < 2
        for name in ("accuracy", "modality_gap", "gradient_norm"):
            mean = sum(getattr(part, name) for part in each.datasets) / 2
            assert getattr(each, name) == pytest.approx(mean)


def test_the_batch_size_does_not_change_the_diagnoses() -> None:
    for one, other in zip(found_with(64).diagnoses, found_with(4).diagnoses, strict=True):
        assert one.accuracy == other.accuracy
        for name in ("modality_gap", "gradient_norm", "effective_rank"):
            # float32 sums are rounded differently with another batch size.
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-2)
