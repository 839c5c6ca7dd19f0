"""Comparison of CLIPure-Cos with closed forms: a step rotates an embedding towards the null texts."""

from dataclasses import replace

import pytest
import torch
from contexts import alone, context_of, random_images
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.clipure import CLIPURE_COS, CLIPURE_COS_SHORT, logits, purify


def null_of(features: Tensor) -> Tensor:
    return functional.normalize(features.mean(dim=0), dim=-1)


def embeddings() -> Tensor:
    random = torch.Generator().manual_seed(2)
    return functional.normalize(torch.randn(5, 6, generator=random, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("step", [0.05, 3.75, 30.0])
def test_a_step_rotates_the_embedding_by_the_arctangent_of_its_length(step: float) -> None:
    context, before = context_of({"iterations": 1.0, "step": step}), embeddings()
    null = null_of(context.null_features)
    after = purify(context, before)
    aside = functional.normalize(before - (before @ null)[:, None] * null, dim=1)
    angle = (before @ null).arccos() - torch.tensor(step, dtype=torch.float64).atan()
    assert torch.allclose(after, angle.cos()[:, None] * null + angle.sin()[:, None] * aside)


def test_a_step_follows_the_gradient_of_autograd() -> None:
    context = context_of({"iterations": 1.0, "step": 1.0})
    before = embeddings().requires_grad_()
    null = null_of(context.null_features)
    cosine = functional.cosine_similarity(before, null[None])
    (gradient,) = torch.autograd.grad(cosine.sum(), before)
    moved = functional.normalize(before + functional.normalize(gradient, dim=1), dim=1)
    assert torch.allclose(purify(context, before), moved)


def test_the_published_step_passes_the_null_texts_and_comes_back() -> None:
    context, before = context_of(CLIPURE_COS.settings), torch.cat([embeddings(), -embeddings()])
    angle = (before @ null_of(context.null_features)).arccos()
    near = angle < torch.tensor(30.0).atan()
    after = purify(context, before)
    assert 0 < near.sum() < len(near)
    # Steps come in pairs. Embeddings near the null texts come back; those of others are mirrored at the null texts.
    assert torch.allclose(after[near], before[near])
    assert not torch.allclose(after[~near], before[~near], atol=0.5)


def test_short_steps_approach_the_null_texts() -> None:
    context, before = context_of(CLIPURE_COS_SHORT.settings), embeddings()
    null = null_of(context.null_features)
    turned = (before @ null).arccos() - (purify(context, before) @ null).arccos()
    assert torch.allclose(turned, torch.full_like(turned, 10 * torch.tensor(0.05, dtype=torch.float64).atan()))


def test_logits_do_not_depend_on_other_samples_of_the_batch() -> None:
    context, images = context_of(CLIPURE_COS.settings), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-9)


@pytest.mark.parametrize("settings", [CLIPURE_COS.settings, CLIPURE_COS_SHORT.settings])
def test_the_gradient_flows_through_all_steps(settings: dict[str, float]) -> None:
    images = random_images().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: logits(context_of(settings), pixels), images)


def test_without_differentiation_purification_adds_a_constant() -> None:
    context = context_of(CLIPURE_COS_SHORT.settings)
    images = random_images().requires_grad_()
    constant = logits(replace(context, differentiate=False), images)
    assert torch.allclose(constant, logits(context, images))
    plain = context.scale * functional.normalize(context.image_encoder(images), dim=1) @ context.text_features.T
    expected, found = (torch.autograd.grad(scores[:, 1].sum(), images)[0] for scores in (plain, constant))
    assert torch.allclose(found, expected)
