"""Comparison of TTC with a second implementation."""

from dataclasses import replace

import pytest
import torch
from contexts import alone, context_of, random_images
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.test_time import ttc
from robustbench_vlm.test_time.ttc import TTC, counterattack, logits, tau

EPS = 4 / 255
ALWAYS, NEVER = {**TTC.settings, "tau": 1e9}, {**TTC.settings, "tau": 0.0}


def noise_of(keys: Tensor, images: Tensor) -> Tensor:
    return (randomness.uniform(keys, 0, images.shape[1:]).double() * 2 - 1) * EPS


def test_only_noise_is_added_if_it_moves_the_embedding_by_tau() -> None:
    context, images = context_of(NEVER), random_images()
    assert torch.allclose(counterattack(context, images), noise_of(context.keys, images))


def test_iterates_of_pgd_are_averaged_if_noise_moves_the_embedding_less() -> None:
    context, images = context_of(ALWAYS), random_images()
    steps = [noise_of(context.keys, images)]
    for _ in range(2):
        at = steps[-1].clone().requires_grad_()
        distance = (context.image_encoder(images + at) - context.image_encoder(images)).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(distance, at)
        steps.append((steps[-1] + gradient.sign() / 255).clamp(-EPS, EPS))
    weights = torch.tensor([1.0, torch.e**2, torch.e**4], dtype=torch.float64)
    mean = sum(weight * step for weight, step in zip(weights / weights.sum(), steps, strict=True))
    found = counterattack(context, images)
    assert torch.allclose(found, mean)
    assert found.abs().max() <= EPS + 1e-12


def test_each_sample_compares_its_own_change_with_tau() -> None:
    context, images = context_of(TTC.settings), random_images()
    moved = tau(context, images, noise_of(context.keys, images))
    assert moved.unique().numel() == 3
    middle = replace(context, settings={**TTC.settings, "tau": float(moved.median())})
    strayed = (counterattack(middle, images) - noise_of(context.keys, images)).flatten(1).abs().amax(dim=1) < 1e-12
    assert torch.equal(strayed, moved >= moved.median())


def test_tau_uses_the_undefended_encoder() -> None:
    context, images = context_of(TTC.settings), random_images()
    noise = noise_of(context.keys, images)
    clean, moved = context.undefended_encoder(images), context.undefended_encoder(images + noise)
    assert torch.allclose(tau(context, images, noise), (moved - clean).norm(dim=1) / clean.norm(dim=1))


def test_logits_do_not_depend_on_other_samples_of_the_batch() -> None:
    context, images = context_of(ALWAYS), random_images()
    whole = logits(context, images)
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), whole, rtol=1e-12)


def test_the_gradient_flows_through_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # The gradient of a sign is zero, so a smooth function replaces it for finite differences.
    monkeypatch.setattr(ttc, "straight_through_sign", torch.tanh)
    context, images = context_of(ALWAYS), random_images().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: logits(context, pixels), images)


def test_without_differentiation_the_counterattack_is_a_constant() -> None:
    through, constant = context_of(ALWAYS), context_of(ALWAYS, differentiate=False)
    images = random_images().requires_grad_()
    added = counterattack(constant, images).detach()
    features = functional.normalize(constant.image_encoder(images + added), dim=-1)
    expected, found, whole = (
        torch.autograd.grad(scores[:, 0].sum(), images)[0]
        for scores in (
            constant.scale * features @ constant.text_features.T,
            logits(constant, images),
            logits(through, images),
        )
    )
    assert torch.allclose(found, expected) and not torch.allclose(whole, expected)
