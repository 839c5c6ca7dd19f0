"""Comparison of CSR with a second implementation, and of its filter with closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from contexts import alone, context_of, random_images
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time import csr
from robustbench_vlm.test_time.base import DefenseContext
from robustbench_vlm.test_time.csr import CSR, logits, low_pass, rectification

ALWAYS, NEVER = {**CSR.settings, "threshold": 2.0}, {**CSR.settings, "threshold": -2.0}
CUTOFF = 40 / 224


def features_of(context: DefenseContext, images: Tensor) -> Tensor:
    return functional.normalize(context.image_encoder(images), dim=1)


def test_the_filter_multiplies_each_frequency_by_a_gaussian() -> None:
    columns = torch.arange(16, dtype=torch.float64)
    for cycles in (0, 1, 3):
        wave = torch.cos(2 * torch.pi * cycles * columns / 16).expand(1, 3, 16, 16)
        factor = math.exp(-((cycles / 16) ** 2) / (2 * CUTOFF**2))
        assert torch.allclose(low_pass(0.5 + 0.4 * wave, CUTOFF), 0.5 + 0.4 * factor * wave)
    assert low_pass(1.5 * torch.ones(1, 3, 4, 4), CUTOFF).max() == 1


def test_the_rectification_is_the_best_iterate_of_pgd() -> None:
    context, images = context_of(ALWAYS), random_images()
    found = rectification(context, images)
    own, filtered = features_of(context, images), features_of(context, low_pass(images, CUTOFF))
    for n in range(3):
        current, seen = images[n : n + 1].clone(), []
        for _ in range(4):
            current.requires_grad_()
            near, far = (float((features_of(context, current.detach()) * each[n]).sum()) for each in (filtered, own))
            seen.append((near - far, current.detach()))
            score = (features_of(context, current) * (filtered[n] - own[n]).detach()).sum()
            (gradient,) = torch.autograd.grad(score, current)
            step = current.detach() + 2 / 255 * gradient.sign() - images[n]
            current = images[n : n + 1] + step.clamp(-4 / 255, 4 / 255)
        best = max(seen, key=lambda pair: pair[0])[1]
        assert torch.allclose(found[n], best[0] - images[n], atol=1e-12)
        assert found[n].abs().max() <= 4 / 255 + 1e-12


def test_only_images_that_the_filter_changes_are_rectified() -> None:
    context, images = context_of(CSR.settings), random_images()
    cosines = (features_of(context, images) * features_of(context, low_pass(images, CUTOFF))).sum(dim=1)
    middle = replace(context, settings={**CSR.settings, "threshold": float(cosines.median())})
    changed = rectification(middle, images).flatten(1).abs().amax(dim=1) > 0
    assert torch.equal(changed, cosines < cosines.median()) and changed.sum() == 1
    plain = context.scale * features_of(context, images) @ context.text_features.T
    assert torch.allclose(logits(context_of(NEVER), images), plain)


def test_pixels_stay_in_the_range_of_images() -> None:
    images = random_images().round()
    changed = images + rectification(context_of(ALWAYS), images)
    assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("settings", [ALWAYS, CSR.settings])
def test_logits_do_not_depend_on_other_samples_of_the_batch(settings: dict[str, float]) -> None:
    context, images = context_of(settings), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-12)


def test_the_gradient_flows_through_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # The gradient of a sign is zero, so a smooth function replaces it for finite differences.
    monkeypatch.setattr(csr, "straight_through_sign", torch.tanh)
    context, images = context_of(ALWAYS), random_images().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: logits(context, pixels), images)


def test_without_differentiation_the_rectification_is_a_constant() -> None:
    constant, images = context_of(ALWAYS, differentiate=False), random_images().requires_grad_()
    added = rectification(constant, images).detach()
    plain = constant.scale * features_of(constant, images + added) @ constant.text_features.T
    through = logits(context_of(ALWAYS), images)
    expected, found, whole = (
        torch.autograd.grad(scores[:, 0].sum(), images)[0] for scores in (plain, logits(constant, images), through)
    )
    assert torch.allclose(found, expected) and not torch.allclose(whole, expected)
