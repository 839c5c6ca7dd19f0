"""TTC: add a counterattack to the image before it is classified (Xing et al., CVPR 2025, arXiv 2503.03613)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness
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


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of images (B, 3, H, W) in [0, 1] with counterattacks."""
    with torch.set_grad_enabled(context.differentiate and torch.is_grad_enabled()):
        found = counterattack(context, images)
    features = functional.normalize(context.image_encoder(images + found), dim=-1)
    return context.scale * features @ context.text_features.T


def counterattack(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the perturbations for images, float32 (B, 3, H, W). They are at most eps in each pixel.

    First, uniform noise is added to each image. The function `tau` returns the relative change of the image embedding
    of the undefended model. If this change is at least the setting `tau`, the perturbation is the noise. If not, the
    perturbation is a weighted mean of PGD iterates. PGD maximises the distance between the embeddings of the image with
    and without the perturbation. Later iterates have larger weights.
    """
    settings, eps = context.settings, in_pixel_scale(context.settings["eps"])
    noise = _noise(context, images)
    steps = [noise]
    target = context.image_encoder(images)
    for _ in range(int(settings["steps"])):
        with torch.enable_grad():
            at = steps[-1] if steps[-1].requires_grad else steps[-1].detach().requires_grad_()
            # PGD uses only the signs of the gradient. The distance and its square have gradients with the same signs.
            # The squared distance is used, because it can be differentiated even if the distance is zero.
            losses = (context.image_encoder(images + at) - target).square().sum(dim=1)
        step = in_pixel_scale(settings["step"]) * straight_through_sign(inner_gradient(context, losses, at))
        steps.append(within_pixels(images, (steps[-1] + step).clamp(-eps, eps)))
    weights = torch.softmax(settings["beta"] * torch.arange(len(steps)).to(images), dim=0)
    mean: Tensor = (torch.stack(steps) * weights.view(-1, 1, 1, 1, 1)).sum(dim=0)
    strayed = (tau(context, images, noise) >= settings["tau"]).view(-1, 1, 1, 1)
    return torch.where(strayed, noise, mean)


def tau(context: DefenseContext, images: Tensor, noise: Tensor) -> Tensor:
    """Return the relative change of image embeddings if `noise` (B, 3, H, W) is added to the images, float32 (B,).

    The embeddings are those of the undefended model. The relative change is the norm of the change divided by the norm
    of the embedding without noise.
    """
    with torch.no_grad():
        return _relative_change(context, images, noise)


def _relative_change(context: DefenseContext, images: Tensor, noise: Tensor) -> Tensor:
    clean, moved = context.undefended_encoder(images), context.undefended_encoder(images + noise)
    share: Tensor = (moved - clean).norm(dim=1) / clean.norm(dim=1)
    return share


def _noise(context: DefenseContext, images: Tensor) -> Tensor:
    noise = randomness.uniform(context.keys, 0, images.shape[1:]).to(images) * 2 - 1
    return within_pixels(images, noise * in_pixel_scale(context.settings["eps"]))


def _own_change(context: DefenseContext, images: Tensor) -> Tensor:
    return _relative_change(context, images, _noise(context, images))


def _passes(settings: Mapping[str, float]) -> Passes:
    # Computing `tau` needs two forward passes. The embedding of the image and the logits need one pass each, and
    # so does every step.
    steps = int(settings["steps"])
    return Passes(forward=4 + steps, inner=steps)


TTC = TestTimeDefense(
    name="ttc",
    logits=logits,
    passes=_passes,
    settings={"eps": 4.0, "steps": 2.0, "step": 1.0, "beta": 2.0, "tau": 0.2},
    objective=Objective(
        "the relative change of the image embedding under noise; above the setting `tau`, there is no counterattack",
        _own_change,
        lambda settings: Passes(forward=2, outer=2),
    ),
    needs_undefended=True,
    paper="https://arxiv.org/abs/2503.03613",
    fidelity="paper",
    deviations=(
        "random numbers depend only on the sample, so that an image always has the same logits",
        "the weighted mean includes the random noise, as the iterate of step 0",
        "eps and step are applied to the image before it is resized; their unit is 1/255 of the pixel range",
    ),
)
