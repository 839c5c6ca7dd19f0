"""Comparison of DBD with hand-computed embeddings, and of its transformations with second implementations."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import alone, context_of, random_images
from PIL import Image
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time import transformations
from robustbench_vlm.test_time.dbd import DBD, bias_score, logits, move
from robustbench_vlm.test_time.jpeg import compressed
from robustbench_vlm.test_time.transformations import VIEWS, median_filtered, reduced, transformed


def smooth_image(side: int = 40) -> Tensor:
    """Return a smooth 8-bit colour image, uint8 (1, 3, side, side)."""
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 5, 5, generator=random)
    return (255 * functional.interpolate(coarse, (side, side), mode="bilinear")).to(torch.uint8)


@pytest.mark.parametrize("quality", [50, 60, 75])
@pytest.mark.parametrize("side", [48, 40])
def test_jpeg_compression_agrees_with_pillow(side: int, quality: int) -> None:
    colour = smooth_image(side)
    for image, mean, most in ((colour[:, :1].expand(-1, 3, -1, -1), 0.5, 2), (colour, 1.6, 3)):
        buffer = io.BytesIO()
        Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(buffer, format="JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
        difference = (255 * compressed(image / 255, quality)[0] - expected).abs()
        # A coefficient near the middle of two quantised values can change a few blocks of a colour image.
        assert difference.mean() < mean and difference.quantile(0.8) < most


def test_fewer_bits_round_levels_and_256_becomes_black() -> None:
    levels = torch.tensor([0.0, 15, 17, 100, 240, 255]).view(1, 1, 1, -1) / 255
    floor, nearest, ceil = (255 * reduced(levels, each).flatten() for each in (torch.floor, torch.round, torch.ceil))
    assert floor.tolist() == pytest.approx([0, 0, 0, 96, 224, 224])
    assert nearest.tolist() == pytest.approx([0, 0, 32, 96, 0, 0], abs=1e-4)
    assert ceil.tolist() == pytest.approx([0, 32, 32, 128, 0, 0], abs=1e-4)


def test_the_median_repeats_border_pixels() -> None:
    image = random_images(1)
    padded = np.pad(image[0, 0].numpy(), 2, mode="edge")
    expected = [[np.median(padded[y : y + 5, x : x + 5]) for x in range(4)] for y in range(4)]
    assert median_filtered(image)[0, 0].tolist() == expected


def test_transformations_depend_on_the_key_and_have_the_noise_of_the_paper() -> None:
    context, images = context_of(DBD.settings), torch.full((3, 3, 32, 32), 0.5, dtype=torch.float64)
    views = transformed(context.keys, images)
    assert views.shape == (3, VIEWS, 3, 32, 32) and VIEWS == 31
    assert torch.equal(views, transformed(context.keys, images))
    noise = views[:, 16:22] - 0.5
    assert abs(float(noise.std()) - 0.1) < 0.002 and not torch.equal(noise[0], noise[1])
    # A constant image does not change under crops and filters.
    assert torch.allclose(views[:, :16], images[:, None]) and torch.allclose(views[:, -3:], images[:, None])


def test_the_embedding_moves_along_the_mean_difference() -> None:
    # Of three transformed images, the two with the lower entropy are the reference.
    settings = {"references": 2.0, "threshold": 0.8, "factor": 2.5}
    axes = torch.eye(3, dtype=torch.float64)
    context = replace(context_of(settings), text_features=axes, scale=5.0)
    own = axes[2:]
    near = functional.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, 0, 0.1]], dtype=torch.float64), dim=1)
    unsure = functional.normalize(torch.ones(1, 3, dtype=torch.float64), dim=1)
    mean = near.mean(dim=0) - own[0]
    found = move(context, own, torch.cat([near[:1], unsure, near[1:]])[None])
    assert torch.allclose(found[0], 2.5 * mean)
    apart = torch.stack([axes[0], axes[1]])[None]
    # Both differences have the cosine (1/2 + 1) / sqrt(2 * 3/2) = 0.866 with their mean.
    assert torch.allclose(bias_score(apart - own, (apart - own).mean(dim=1)), torch.tensor([0.75**0.5]).double())
    strict = replace(context, settings={**settings, "threshold": 0.87})
    assert torch.allclose(move(strict, own, apart), (apart - own).mean(dim=1))


def test_logits_do_not_depend_on_other_samples_of_the_batch() -> None:
    context, images = context_of(DBD.settings), random_images()
    rows = [logits(alone(context, n), images[n : n + 1]) for n in range(3)]
    assert torch.allclose(torch.cat(rows), logits(context, images), rtol=1e-9)


def test_the_gradient_flows_through_all_transformations(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding has no gradient, so finite differences leave out the images with fewer bits and JPEG compression.
    monkeypatch.setattr(transformations, "_ROUNDINGS", ())
    monkeypatch.setattr(transformations, "_QUALITIES", ())
    images = random_images(2).requires_grad_()
    context = context_of({**DBD.settings, "references": 25.0}, count=2)
    assert torch.autograd.gradcheck(lambda pixels: logits(context, pixels), images)


def test_rounding_has_the_gradient_of_the_identity() -> None:
    image = random_images(1).requires_grad_()
    for each in (reduced(image, torch.floor), compressed(image, 50)):
        (gradient,) = torch.autograd.grad(each.sum(), image)
        assert torch.allclose(gradient.sum(), torch.tensor(48.0).double(), rtol=1e-3)


def test_without_differentiation_the_move_is_a_constant() -> None:
    constant, images = context_of(DBD.settings, differentiate=False), random_images().requires_grad_()
    own = functional.normalize(constant.image_encoder(images), dim=1)
    views = functional.normalize(constant.image_encoder(transformed(constant.keys, images).flatten(0, 1)), dim=1)
    change = move(constant, own, views.unflatten(0, (3, VIEWS))).detach()
    plain = constant.scale * functional.normalize(own + change, dim=1) @ constant.text_features.T
    found, expected = (
        torch.autograd.grad(each[:, 0].sum(), images, retain_graph=True)[0]
        for each in (logits(constant, images), plain)
    )
    assert torch.allclose(found, expected)
