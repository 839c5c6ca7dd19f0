"""Data classes of test-time defenses, and helpers for gradients through their inner loops."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import GradientMode

Encoder = Callable[[Tensor], Tensor]
"""Type of an image encoder: images float32 (B, 3, H, W) in [0, 1] to embeddings float32 (B, D), not normalised."""


@dataclass(frozen=True)
class DefenseContext:
    """The inputs of a test-time defense except the images."""

    keys: Tensor
    """The key of each sample's random numbers, int64 (B,). The module `core.random` explains keys."""
    image_encoder: Encoder
    """The image encoder of the defended model."""
    undefended_encoder: Encoder
    """The image encoder of the undefended model, from which the defended model was trained. If the defense does not
    need the undefended model, this field is equal to `image_encoder`.
    """
    text_features: Tensor
    """Text embeddings of the classes, float32 (C, D) of norm 1."""
    null_features: Tensor
    """Text embeddings of the `null_texts` of the defense, float32 (N, D) of norm 1. If the defense lacks `null_texts`,
    this field is `text_features`."""
    token_embeddings: Tensor
    """Token embeddings of the prompts of the C classes, float32 (C, L, W). Each prompt has L tokens of width W."""
    text_encoder: Callable[[Tensor], Tensor]
    """Maps changed token embeddings (B, C, L, W) to text embeddings (B, C, D) of norm 1."""
    scale: float
    """The logit scale."""
    settings: Mapping[str, float]
    """The settings of the defense. Their names follow the paper."""
    differentiate: bool
    """True if the gradient flows through the inner loops of the defense. If it is False, the results of the loops are
    constants.
    """


@dataclass(frozen=True)
class Passes:
    """The numbers of forward and backward passes through the image encoder that the logits of one image need."""

    forward: int
    """Forward passes."""
    inner: int = 0
    """Backward passes in the inner loops of the defense."""
    outer: int = 1
    """The number of forward passes through which the gradient of the logits flows back to the image."""


@dataclass(frozen=True)
class Objective:
    """A value that a test-time defense optimises, or that decides what it does. Attacks can increase it."""

    description: str
    """The value, as a phrase for the documentation. The attack increases it, so a loss of the defense is negative."""
    values: Callable[[DefenseContext, Tensor], Tensor]
    """Maps a context and images, float32 (B, 3, H, W) in [0, 1], to values, float32 (B,), with a gradient."""
    passes: Callable[[Mapping[str, float]], Passes]
    """Maps the settings to the `Passes` of the value of one image."""


@dataclass(frozen=True)
class TestTimeDefense:
    """A test-time defense: a function from images and random numbers to logits.

    The logits of an image must not depend on the other images of the batch, or on whether gradients are computed.
    """

    name: str
    logits: Callable[[DefenseContext, Tensor], Tensor]
    """Maps a context and images, float32 (B, 3, H, W) in [0, 1], to logits, float32 (B, C)."""
    passes: Callable[[Mapping[str, float]], Passes]
    """Maps the settings to the `Passes` of one image."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """The settings of the defense. Their names follow the paper."""
    version: int = 1
    """Version of the defense. Raise it whenever a change of the code can change a logit."""
    null_texts: tuple[str, ...] = ()
    """Texts without a class name, such as "a photo of a ."."""
    tunes_prompts: bool = False
    """True if the defense runs the text encoder for each sample. If it is False, the fields `token_embeddings` and
    `text_encoder` of the context cannot be used.
    """
    gradient_modes: tuple[GradientMode, ...] = (GradientMode("loop", "loop"), GradientMode("constant", "constant"))
    """The ways in which adaptive attacks compute the gradient of the defense. Every attack also
    runs as a transfer attack: it attacks the model without the test-time defense, and the model with the defense
    classifies the result.
    """
    objective: Objective | None = None
    """The objective of the defense, for the algorithm `apgd-objective` of attack files. None if it has none."""
    needs_undefended: bool = False
    """True if the defense uses the undefended model, from which the defended model was trained.

    The undefended model is the base in the card of the defended model. If the card does not have a base, it is the base
    model of the track. If this field is False, the undefended model is not loaded, and the defended model replaces it.
    """
    images_per_sample: int = 1
    """The number of images that one sample needs in memory at once, such as its views."""
    text_passes: str = ""
    """Text that describes the passes through the text encoder for one image. Records do not count these passes."""
    paper: str = ""
    """URL of the paper."""
    fidelity: str = "paper"
    """The source of the implementation: "official code", "paper" or "reconstruction"."""
    deviations: tuple[str, ...] = ()
    """Known differences from the source, one sentence each."""


_LOOPS = ("steps", "iterations")
"""The settings that are the number of steps of an inner loop."""


def shortened(settings: Mapping[str, float]) -> Mapping[str, float]:
    """Return the settings of a defense with only one step in its inner loop.

    The settings of a defense without a loop of several steps are returned unchanged.
    """
    return {name: min(value, 1.0) if name in _LOOPS else value for name, value in settings.items()}


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """Return `value` with the gradient of another tensor of the same shape, `smooth` (BPDA, arXiv:1802.00420, 4.1)."""
    return value.detach() + (smooth - smooth.detach())


def straight_through_sign(values: Tensor) -> Tensor:
    """Return the signs of `values` (B, ...) with a gradient that is not zero.

    The gradient is the one of `values` divided by a constant for each row: the mean magnitude of the row's values.
    """
    size = values.detach().abs().flatten(1).mean(dim=1).clamp_min(1e-30)
    return straight_through(values.sign(), values / size.view(-1, *(1,) * (values.dim() - 1)))


def in_pixel_scale(levels: float) -> float:
    """Convert a number of grey levels out of 255 to a fraction of the pixel range [0, 1]."""
    return float(Fraction(levels) / 255)


def within_pixels(images: Tensor, added: Tensor) -> Tensor:
    """Reduce the perturbations `added` (B, 3, H, W), so that the pixels of images + added are in [0, 1]."""
    return (images + added).clamp(0, 1) - images


def inner_gradient(context: DefenseContext, losses: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of the sum of the losses (B,) with respect to `inputs`, in the shape of `inputs`.

    If an attack differentiates through the inner loop, the returned gradient can be differentiated too.
    """
    create = context.differentiate and torch.is_grad_enabled()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses.sum(), inputs, create_graph=create)
    return gradient
