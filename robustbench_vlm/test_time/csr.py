"""CSR: detect images that a low-pass filter changes, and move them towards the filtered image (arXiv 2601.19210)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import (
    DefenseContext,
    Objective,
    Passes,
    TestTimeDefense,
    in_pixel_scale,
    inner_gradient,
    straight_through_sign,
    within_pixels,
)

_PUBLISHED_SIDE = 224
"""Height and width of the images for which the radius of the filter is published, in pixels."""


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of rectified images, for images float32 (B, 3, H, W) in [0, 1]."""
    with torch.set_grad_enabled(context.differentiate and torch.is_grad_enabled()):
        found = rectification(context, images)
    return context.scale * _features(context, images + found) @ context.text_features.T


def rectification(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the perturbations for images, float32 (B, 3, H, W). They are at most eps in each pixel.

    The perturbation is zero if the cosine of the embeddings of the image and of the filtered image is at least the
    setting `threshold`. If not, PGD maximises the cosine with the filtered image minus the cosine with the image. The
    iterate with the highest value is returned.
    """
    settings, eps = context.settings, in_pixel_scale(context.settings["eps"])
    own, filtered = _both_features(context, images)
    step = in_pixel_scale(settings["step"])
    current = best = torch.zeros_like(images)
    best_score = own.new_full((len(images),), -torch.inf)
    for number in range(int(settings["steps"]) + 1):
        with torch.enable_grad():
            at = current if current.requires_grad else current.detach().requires_grad_()
            # The cosine with the image is the cosine with a constant, also for the first iterate, which is the image.
            scores = (_features(context, images + at) * (filtered - own)).sum(dim=1)
        better = scores.detach() > best_score
        best = torch.where(better.view(-1, 1, 1, 1), current, best)
        best_score = torch.where(better, scores.detach(), best_score)
        if number < int(settings["steps"]):
            moved = current + step * straight_through_sign(inner_gradient(context, scores, at))
            current = within_pixels(images, moved.clamp(-eps, eps))
    is_changed = (own * filtered).sum(dim=1) < settings["threshold"]
    return torch.where(is_changed.view(-1, 1, 1, 1), best, torch.zeros_like(best))


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Return images (B, 3, H, W) after a Gaussian low-pass filter, clipped to [0, 1].

    The filter multiplies the frequency (u, v), in cycles per pixel, by exp(-(u^2 + v^2) / (2 cutoff^2)).
    """
    rows, columns = (torch.fft.fftfreq(side, dtype=images.dtype, device=images.device) for side in images.shape[2:])
    mask = torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * cutoff**2))
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * mask).real
    return filtered.clamp(0, 1)


def _agreement(context: DefenseContext, images: Tensor) -> Tensor:
    own, filtered = _both_features(context, images)
    return (own * filtered).sum(dim=1)


def _both_features(context: DefenseContext, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings of images and of the filtered images, float32 (B, D) of norm 1 each."""
    smooth = low_pass(images, context.settings["radius"] / _PUBLISHED_SIDE)
    return _features(context, images), _features(context, smooth)


def _features(context: DefenseContext, images: Tensor) -> Tensor:
    return functional.normalize(context.image_encoder(images), dim=-1)


def _passes(settings: Mapping[str, float]) -> Passes:
    # The image, the filtered image, each iterate with the first one, and the answer need one forward pass each.
    steps = int(settings["steps"])
    return Passes(forward=4 + steps, inner=steps)


CSR = TestTimeDefense(
    name="csr",
    logits=logits,
    passes=_passes,
    settings={"radius": 40.0, "threshold": 0.85, "steps": 3.0, "eps": 4.0, "step": 2.0},
    objective=Objective(
        "the cosine of the embeddings of the image and the filtered image; from the setting `threshold` on, the image"
        " is not changed",
        _agreement,
        lambda settings: Passes(forward=2, outer=2),
    ),
    paper="https://arxiv.org/abs/2601.19210",
    fidelity="official code",
    deviations=(
        "the steps and the choice of the iterate follow CSR.py of the released code; csr/defense/csr_fast.py, which its"
        " README evaluates, makes one update less",
        "the radius of the filter is 40/224 cycles per pixel of the image before it is resized; the released code"
        " filters images of 224 pixels with a radius of 40",
        "eps and step are applied to the image before it is resized; their unit is 1/255 of the pixel range",
        "every image is rectified before the detector decides, so that the number of passes does not depend on the"
        " image; the released code rectifies only detected images, with equal results",
    ),
)
