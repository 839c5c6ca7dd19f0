"""What a procedure is: logits of an image and of the sample's random numbers, and how an attack sees through it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import View

Features = Callable[[Tensor], Tensor]
"""An image tower: images (B, 3, H, W) in [0, 1] to embeddings (B, D) that are not normalised."""


@dataclass(frozen=True)
class Context:
    """What a procedure may use beside the images it is given."""

    keys: Tensor
    """(B,), int64: the samples' random numbers (`randomness`)."""
    features: Features
    """The image tower of the model under the procedure."""
    undefended: Features
    """That of the undefended model that it was made from, which may be the same one."""
    text_features: Tensor
    """Unit text embeddings of the classes, (C, D)."""
    null_features: Tensor
    """Unit text embeddings of the procedure's own texts, (N, D)."""
    tokens: Tensor
    """Embeddings of the tokens of the classes' prompts, (C, L, W)."""
    text_tower: Callable[[Tensor], Tensor]
    """Their changed embeddings, (B, C, L, W), to unit text embeddings (B, C, D)."""
    scale: float
    """The logit scale."""
    settings: Mapping[str, float]
    """The procedure's numbers, by their names in the paper."""
    differentiate: bool
    """Whether the gradient goes through what the procedure finds; if not, that is a constant."""


@dataclass(frozen=True)
class Passes:
    """Passes through the image tower that the logits of one image cost."""

    forward: int
    inner: int = 0
    """Backward passes of the procedure's own loops."""
    outer: int = 1
    """Forward passes from which the logits' gradient flows back to the image."""


@dataclass(frozen=True)
class TestTimeDefense:
    """A test-time defense: a function of one image and of the sample's random numbers, batched.

    No row may depend on another one. The forward values are the same whether gradients are asked for or not.
    """

    name: str
    logits: Callable[[Context, Tensor], Tensor]
    """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
    passes: Callable[[Mapping[str, float]], Passes]
    settings: Mapping[str, float] = field(default_factory=dict)
    version: int = 1
    """Version of the defense. Raise it whenever a change of the code can change a logit."""
    texts: tuple[str, ...] = ()
    """Texts of the procedure's own, embedded once."""
    tunes_texts: bool = False
    """Whether it passes the text tower for each sample; only then the context has `tokens` and `text_tower`."""
    views: tuple[View, ...] = (View("loop", "loop"), View("constant", "constant"))
    """How an attack sees it; the transfer from the model without it is always tried beside these."""
    needs_undefended: bool = False
    """Whether it asks the model that its own was made from: the base that the card names, or else the track's.

    If not, none is loaded and the model stands in.
    """
    pictures: int = 1
    """Images that one sample has in memory at once."""
    text_passes: str = ""
    """Passes through the text tower for an image, which records do not count."""
    paper: str = ""
    fidelity: str = "paper"
    """"official code", "paper" or "reconstruction"."""
    deviations: tuple[str, ...] = ()


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """Return `value`, with the gradient of `smooth` (BPDA, arXiv:1802.00420, section 4.1)."""
    return value.detach() + (smooth - smooth.detach())


def sign(values: Tensor) -> Tensor:
    """Return the signs of values (B, ...); backward they are the values over the mean size of their row."""
    size = values.detach().abs().flatten(1).mean(dim=1).clamp_min(1e-30)
    return straight_through(values.sign(), values / size.view(-1, *(1,) * (values.dim() - 1)))


def pixels(number: float) -> float:
    """Return a number of grey levels, of 255, in pixel scale."""
    return float(Fraction(number) / 255)


def inner_gradient(context: Context, losses: Tensor, at: Tensor) -> Tensor:
    """Return the gradient of a sum of losses (B,) within a procedure, with a graph of its own if an attack needs it."""
    create = context.differentiate and torch.is_grad_enabled()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(losses.sum(), at, create_graph=create)
    return gradient
