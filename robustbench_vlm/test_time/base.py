"""Test-time defenses as data, what their functions get, and gradients through rounding and signs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import GradientMode

Encoder = Callable[[Tensor], Tensor]
"""An image encoder: images (B, 3, H, W) in [0, 1] to embeddings (B, D) that are not normalised."""


@dataclass(frozen=True)
class DefenseContext:
    """All that a test-time defense may use in addition to the images."""

    keys: Tensor
    """(B,), int64: the samples' random streams (`core.random`)."""
    image_encoder: Encoder
    """The image encoder of the defended model."""
    undefended_encoder: Encoder
    """That of the undefended model that the defended one was made from; it may be the same one."""
    text_features: Tensor
    """Unit text embeddings of the classes, (C, D)."""
    null_features: Tensor
    """Unit text embeddings of the defense's `null_texts`, (N, D); without them, of the classes' prompts."""
    token_embeddings: Tensor
    """Embeddings of the tokens of the classes' prompts, (C, L, W)."""
    text_encoder: Callable[[Tensor], Tensor]
    """Changed token embeddings (B, C, L, W) to unit text embeddings (B, C, D)."""
    scale: float
    """The logit scale."""
    settings: Mapping[str, float]
    """The settings of the defense, by their names in the paper."""
    differentiate: bool
    """Whether the gradient goes through the defense's inner loops; if not, what they find is a constant."""


@dataclass(frozen=True)
class Passes:
    """Passes through the image encoder that the logits of one image cost."""

    forward: int
    inner: int = 0
    """Backward passes of the defense's own loops."""
    outer: int = 1
    """Forward passes from which the gradient of the logits flows back to the image."""


@dataclass(frozen=True)
class TestTimeDefense:
    """A test-time defense: a batched function of each image and of its sample's random numbers.

    No row may depend on another one. The logits are the same with and without gradients.
    """

    name: str
    logits: Callable[[DefenseContext, Tensor], Tensor]
    """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
    passes: Callable[[Mapping[str, float]], Passes]
    """The settings to the passes of one image."""
    settings: Mapping[str, float] = field(default_factory=dict)
    version: int = 1
    """Version of the defense. Raise it whenever a change of the code can change a logit."""
    null_texts: tuple[str, ...] = ()
    """Texts that describe no class, embedded once."""
    tunes_prompts: bool = False
    """Whether it passes the text encoder for each sample. Only then does the context have `token_embeddings` and
    `text_encoder`."""
    gradient_modes: tuple[GradientMode, ...] = (GradientMode("loop", "loop"), GradientMode("constant", "constant"))
    """Ways in which adaptive attacks take its gradient. The transfer attack is always tried too."""
    needs_undefended: bool = False
    """Whether it uses the model that the defended one was made from: the base that the card names, or else the track's.

    If not, none is loaded, and the defended model takes its place.
    """
    images_per_sample: int = 1
    """Images that one sample has in memory at once."""
    text_passes: str = ""
    """Passes through the text encoder for an image, in words; records do not count them."""
    paper: str = ""
    fidelity: str = "paper"
    """"official code", "paper" or "reconstruction"."""
    deviations: tuple[str, ...] = ()
    """Differences from the paper, one sentence each."""


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """Return `value`, with the gradient of `smooth` (BPDA, arXiv:1802.00420, section 4.1)."""
    return value.detach() + (smooth - smooth.detach())


def straight_through_sign(values: Tensor) -> Tensor:
    """Return the signs of values (B, ...), with the gradient of the values over the mean size of their row."""
    size = values.detach().abs().flatten(1).mean(dim=1).clamp_min(1e-30)
    return straight_through(values.sign(), values / size.view(-1, *(1,) * (values.dim() - 1)))


def in_pixel_scale(levels: float) -> float:
    """Return a number of grey levels out of 255 as a fraction of the pixel range [0, 1]."""
    return float(Fraction(levels) / 255)


def inner_gradient(context: DefenseContext, losses: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of the sum of losses (B,) at the inputs, for the inner loop of a defense.

    If an attack differentiates through the loop, the gradient has its own graph.
    """
    create = context.differentiate and torch.is_grad_enabled()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses.sum(), inputs, create_graph=create)
    return gradient
