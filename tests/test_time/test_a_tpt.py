"""Tests of A-TPT: relevance maps against a second implementation, guided views, and their shares of the crop."""

from dataclasses import replace

import pytest
import torch
from contexts import alone, context_of, random_images
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.test_time import a_tpt
from robustbench_vlm.test_time.a_tpt import A_TPT, guided_views, logits, shares_of
from robustbench_vlm.test_time.augmix import parts_of_views, random_views
from robustbench_vlm.test_time.relevance import relevance_maps

SETTINGS = {**A_TPT.settings, "views": 3.0, "neighbours": 2.0}


def centre(encoder: object, images: Tensor, text_features: Tensor) -> Tensor:
    """Return maps that are larger near the pixel (1, 1)."""
    rows = torch.arange(images.shape[2], dtype=images.dtype)
    distance = (rows[:, None] - 1.1).abs() + (rows[None, :] - 1.2).abs()
    return (1 - distance / 10).expand(len(images), -1, -1)


@pytest.fixture
def made_up_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    # The encoders of the contexts have no tokens.
    monkeypatch.setattr(a_tpt, "relevance_maps", centre)


def test_the_share_of_the_crop_depends_on_the_quantiles_of_the_map() -> None:
    maps = torch.arange(10.0).view(1, 2, 5)
    settings = {"area_high": 0.2, "area_low": 0.5, "kept_high": 0.8, "kept_low": 0.2}
    found = shares_of(maps, torch.tensor([0.33]), settings).flatten().tolist()
    # The quantile 0.8 of 0 to 9 is 7.2, and the quantile 0.5 is 4.5.
    assert found == pytest.approx([0.2] * 5 + [0.33] * 3 + [0.8] * 2)
    flat = shares_of(torch.zeros(1, 2, 5), torch.tensor([0.33]), settings)
    assert flat.flatten().tolist() == pytest.approx([0.2] * 10)


def test_guided_views_mix_the_parts_of_augmix(made_up_maps: None) -> None:
    context, images = context_of(SETTINGS), random_images()
    views = guided_views(context, images)
    cropped, mixed, kept = parts_of_views(context.keys, images, 3)
    shares = shares_of(centre(None, cropped, images), kept, SETTINGS)[:, None]
    assert torch.equal(views[:, 0], images)
    assert torch.allclose(views[:, 1:].flatten(0, 1), shares * cropped + (1 - shares) * mixed)
    assert not torch.allclose(views, random_views(context.keys, images, 3))
    assert torch.equal(views, guided_views(context, images))


def test_logits_do_not_depend_on_other_samples_of_the_batch(made_up_maps: None) -> None:
    context, images = context_of(SETTINGS), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-9)


def test_the_gradient_flows_through_the_tuning(made_up_maps: None) -> None:
    images = random_images().requires_grad_()
    through, constant = (
        torch.autograd.grad(logits(context, images)[:, 0].sum(), images)[0]
        for context in (context_of(SETTINGS), context_of(SETTINGS, differentiate=False))
    )
    assert torch.isfinite(through).all() and not torch.allclose(through, constant)


def small_transformer() -> ImageEncoder:
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    architecture = Architecture({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, (0.5,) * 3, (0.5,) * 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(architecture.build().eval().requires_grad_(False).visual, architecture)


def weighted_attention(block: nn.Module, tokens: Tensor, gradient: Tensor) -> Tensor:
    """Return the weighted attention of a block for one image, computed head by head."""
    attention, normed = block.attn, block.ln_1(tokens)
    query, key, _ = functional.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    heads = [(query[:, n : n + 16] @ key[:, n : n + 16].T / 4).softmax(dim=1) for n in range(0, query.shape[1], 16)]
    weights = (tokens * gradient).sum(dim=1).clamp(min=0)
    found = sum(heads) / len(heads) * (weights / (weights.sum() + 1e-8)) + torch.eye(len(tokens))
    return found / found.sum(dim=1, keepdim=True)


def test_the_map_of_a_transformer_is_the_rollout_of_its_last_two_blocks() -> None:
    encoder, image = small_transformer(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    texts = functional.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(5)), dim=1)
    blocks, kept = encoder.visual.transformer.resblocks[-2:], []
    hooks = [block.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0])) for block in blocks]
    best = (functional.normalize(encoder(image.clone().requires_grad_()), dim=1) @ texts.T).max()
    gradients = torch.autograd.grad(best, kept)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        earlier, last = (weighted_attention(b, t[0], g[0]) for b, t, g in zip(blocks, kept, gradients, strict=True))
        patches = (last @ ((0.5 * earlier + last) / 1.5))[0, 1:].view(1, 1, 4, 4)
        patches = patches.clamp(max=float(patches.flatten().quantile(0.99)))
        scaled = (patches - patches.min()) / (patches.max() - patches.min())
        expected = functional.interpolate(scaled, (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(relevance_maps(encoder, image, texts), expected, atol=1e-4)


def test_the_map_of_the_small_resnet_has_no_gradient_and_does_not_depend_on_the_batch() -> None:
    model = load_model("clip", "mini")
    classifier = model.classifier(["a photo of a circle", "a photo of a square"])
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(6)).requires_grad_()
    maps = relevance_maps(classifier.encoder, images, classifier.text_features)
    assert maps.shape == (4, 32, 32) and not maps.requires_grad and images.grad is None
    assert maps.amin(dim=(1, 2)).max() < 0.3 and maps.amax(dim=(1, 2)).min() > 0.7
    order = torch.tensor([3, 1, 2, 0])
    again = relevance_maps(classifier.encoder, images[order], classifier.text_features)
    assert torch.allclose(again, maps[order], atol=1e-5)


def test_an_encoder_without_tokens_is_refused() -> None:
    context = replace(context_of(SETTINGS))
    with pytest.raises(UserError, match="needs the tokens of a vision transformer or a ResNet"):
        relevance_maps(context.image_encoder, random_images(), context.text_features)
