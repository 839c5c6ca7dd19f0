"""Tests of R-TPT: comparison with torch's AdamW and with closed forms, and its random views."""

from dataclasses import replace

import pytest
import torch
from contexts import alone, context_of, random_images
from torch.nn import functional

from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.text_encoder import PromptEncoder
from robustbench_vlm.test_time import r_tpt
from robustbench_vlm.test_time.augmix import random_views
from robustbench_vlm.test_time.r_tpt import R_TPT_16, agreement, logits, tuned_texts

SETTINGS = {**R_TPT_16.settings, "views": 8.0, "share": 0.4, "neighbours": 3.0}


def test_texts_are_tuned_by_one_step_of_adamw() -> None:
    context = context_of(SETTINGS)
    # The paper has one context for all classes.
    tokens = context.token_embeddings.clone()
    tokens[:, 1:5] = tokens[0, 1:5]
    context = replace(context, token_embeddings=tokens)
    random = torch.Generator().manual_seed(3)
    views = functional.normalize(torch.randn(2, 8, 6, generator=random, dtype=torch.float64), dim=2)
    found = tuned_texts(context, views)
    for row in range(2):
        tuned = tokens[0, 1:5].clone().requires_grad_()
        optimizer = torch.optim.AdamW([tuned], lr=5e-3)

        def texts(tuned: torch.Tensor = tuned) -> torch.Tensor:
            whole = torch.cat([tokens[:, :1], tuned.expand(len(tokens), -1, -1), tokens[:, 5:]], dim=1)
            return context.text_encoder(whole[None])[0]

        scores = context.scale * views[row] @ texts().T
        entropies = -(scores.softmax(dim=1) * scores.log_softmax(dim=1)).sum(dim=1)
        entropies.sort().values[:3].mean().backward()
        optimizer.step()
        assert torch.allclose(found[row], texts().detach(), rtol=1e-9)


def test_the_weights_of_views_match_the_closed_form() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 2.0], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1)[None]
    nearest = torch.tensor([1 + torch.cos(torch.tensor(gap)) for gap in (0.1, 0.1, 0.1, 1.8)], dtype=torch.float64) / 2
    assert torch.allclose(agreement(features, 2, 0.01)[0], (nearest / 0.01).softmax(dim=0), atol=1e-5)


def test_unchanged_tokens_give_the_text_embeddings() -> None:
    model = load_model("clip", "mini")
    prompts = ("a photo of a red circle.", "a cat", "many small stars on a dark blue sky")
    encoder = PromptEncoder(model.network, model.architecture, prompts)
    assert torch.allclose(encoder(encoder.tokens[None])[0], model.text_features(prompts), atol=1e-6)


def test_views_depend_on_the_sample_and_the_first_view_is_the_image() -> None:
    keys, images = sample_keys(0, "views", ["a", "b", "c"]), random_images()
    views = random_views(keys, images, 8)
    assert views.shape == (3, 8, *images.shape[1:]) and torch.equal(views[:, 0], images)
    assert views.min() >= 0 and views.max() <= 1 + 1e-9
    order = torch.tensor([2, 0])
    assert torch.allclose(random_views(keys[order], images[order], 8), views[order], rtol=1e-12)
    other = random_views(sample_keys(1, "views", ["a", "b", "c"]), images, 8)
    assert not torch.allclose(other[:, 1:], views[:, 1:])
    assert (views[:, 1:] - views[:, :1]).abs().amax(dim=(2, 3, 4)).min() > 0.01


def test_views_of_a_uniform_image_are_uniform_or_solarised() -> None:
    # Geometric steps must not add a dark border, and mixing must not darken the image; only solarising may.
    white = torch.full((2, 3, 16, 16), 0.45, dtype=torch.float64)
    views = random_views(sample_keys(0, "white", ["a", "b"]), white, 32)
    assert (views <= 0.45 + 1e-9).all()
    assert torch.isclose(views, white[:, None]).flatten(2).all(dim=2).sum() >= 8


def test_logits_do_not_depend_on_other_samples_of_the_batch() -> None:
    context, images = context_of(SETTINGS), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-9)


def test_the_gradient_flows_through_the_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first step of AdamW is nearly a sign. A large eps makes it smooth enough for finite differences.
    monkeypatch.setattr(r_tpt, "_ADAM_EPS", 0.5)
    monkeypatch.setattr(r_tpt, "straight_through", lambda value, smooth: value)
    context = context_of({**SETTINGS, "lr": 1.0}, count=1)
    views = random_views(context.keys, random_images(1), 8).flatten(0, 1)
    features = functional.normalize(context.image_encoder(views), dim=1)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda each: tuned_texts(context, each), features)


def test_without_differentiation_texts_and_weights_have_no_gradient() -> None:
    through, images = context_of(SETTINGS), random_images().requires_grad_()
    constant = replace(through, differentiate=False)
    assert torch.allclose(logits(constant, images), logits(through, images))
    first, second = (torch.autograd.grad(logits(each, images)[:, 0].sum(), images)[0] for each in (through, constant))
    assert second.abs().max() > 0 and not torch.allclose(first, second)
