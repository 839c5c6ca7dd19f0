"""ET3: change the image so that the energy of its logits decreases (Mirza et al., CVPR 2026, arXiv 2603.26984)."""

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
)

_SMALLEST_NORM = 1e-8


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of images (B, 3, H, W) in [0, 1] after the steps on their energy."""
    with torch.set_grad_enabled(context.differentiate and torch.is_grad_enabled()):
        change = transformed(context, images) - images
    return plain_logits(context, images + change)


def transformed(context: DefenseContext, images: Tensor) -> Tensor:
    """Return images, float32 (B, 3, H, W) in [0, 1], after gradient descent on their energy.

    The setting `alpha` is the L2 length of each step. After each step, the pixels are clipped to [0, 1] and to a
    distance of at most `eps` from the image.
    """
    eps = in_pixel_scale(context.settings["eps"])
    current = images
    for _ in range(int(context.settings["steps"])):
        with torch.enable_grad():
            at = current if current.requires_grad else current.detach().requires_grad_()
            energies = energy(plain_logits(context, at), context.settings["temperature"])
        gradient = inner_gradient(context, energies, at)
        moved = current - context.settings["alpha"] * _direction(gradient)
        current = (images + (moved.clamp(0, 1) - images).clamp(-eps, eps)).clamp(0, 1)
    return current


def energy(scores: Tensor, temperature: float) -> Tensor:
    """Return the energies, float32 (B,), of logits (B, C): -temperature * logsumexp(logits / temperature)."""
    return -temperature * torch.logsumexp(scores / temperature, dim=1)


def plain_logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of images (B, 3, H, W) in [0, 1] without a defense."""
    return context.scale * functional.normalize(context.image_encoder(images), dim=-1) @ context.text_features.T


def _negative_energy(context: DefenseContext, images: Tensor) -> Tensor:
    return -energy(plain_logits(context, images), context.settings["temperature"])


def _direction(gradient: Tensor) -> Tensor:
    squares = gradient.square().flatten(1).sum(dim=1)
    # The square root has no finite derivative at zero, so the smallest norm is applied to the squares.
    return gradient / squares.clamp_min(_SMALLEST_NORM**2).sqrt().view(-1, 1, 1, 1)


def _passes(settings: Mapping[str, float]) -> Passes:
    steps = int(settings["steps"])
    return Passes(forward=1 + steps, inner=steps)


ET3 = TestTimeDefense(
    name="et3",
    logits=logits,
    passes=_passes,
    settings={"alpha": 2.5, "eps": 5.0, "steps": 2.0, "temperature": 1.0},
    objective=Objective(
        "minus the energy, which the defense decreases", _negative_energy, lambda settings: Passes(forward=1)
    ),
    paper="https://arxiv.org/abs/2603.26984",
    fidelity="official code",
    deviations=(
        "the settings are those of CLIP/scripts/run_eval.sh; the defaults of eval_clip_zs.py are eps 10 and 5 steps",
        "the energy is computed from the classes of the dataset, as in the released script; the paper's tables use the"
        " labels of ImageNet-21K",
        "the perturbation is limited in each pixel, as in the released code; the paper limits its L2 norm",
        "the logit scale is that of the model; the released code uses 100",
        "the step is applied to the image before it is resized, as the released code does for CIFAR and STL10",
    ),
)
