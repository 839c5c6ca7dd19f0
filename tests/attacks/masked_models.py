"""Classifiers that look more robust than their base network, and honest variants of it, for tests and benchmarks.

Each masked model wraps a base network. It hides the gradient, changes its output at random, or reacts to the attack,
but is not more robust. An evaluation passes a masked model if its robust accuracy is at most 2 points above the base
network, or if its robust accuracy has a warning. Sources: arXiv:1802.00420, arXiv:1902.06705, arXiv:1704.01155 (bit
depth), arXiv:1905.10510 (k-winners-take-all), and Buckman et al., ICLR 2018 (thermometer coding).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm import load_dataset

Function = Callable[[Tensor], Tensor]
"""A function of images, float32 [B, 3, H, W] in [0, 1], or of logits, float32 [B, C]."""


class Wrapped(nn.Module):
    """A network with a function before and a function after it."""

    def __init__(self, base: nn.Module, before: Function | None = None, after: Function | None = None) -> None:
        super().__init__()
        self.base, self.before, self.after = base, before, after

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        logits = self.base(images if self.before is None else self.before(images))
        return logits if self.after is None else self.after(logits)


def top_logit(logits: Tensor) -> Tensor:
    """Return a mask with 1 at the largest logit of each row, float32 [B, C]."""
    return functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def levels(images: Tensor, count: int) -> Tensor:
    """Round pixels to `count` levels between 0 and 1."""
    return (images * (count - 1)).round() / (count - 1)


def thermometer(images: Tensor) -> Tensor:
    """Encode each pixel as 16 comparisons, and return the mean of the code."""
    thresholds = torch.linspace(1 / 32, 31 / 32, 16)
    return (images[..., None] > thresholds).to(images.dtype).mean(dim=-1)


def nearest_codeword(images: Tensor) -> Tensor:
    """Replace each pixel by the nearest of 24 values, with an argmin in the middle of the network."""
    codebook = torch.linspace(0, 1, 24)
    return codebook[(images[..., None] - codebook).abs().argmin(dim=-1)]


def jpeg(images: Tensor) -> Tensor:
    """Round the cosine coefficients of 8x8 blocks to multiples of 0.08, as JPEG does."""
    place = torch.arange(8.0)
    basis = torch.cos((2 * place[None] + 1) * place[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    count, channels, height, width = images.shape
    blocks = images.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = (basis @ blocks @ basis.T / 0.08).round() * 0.08
    return (basis.T @ coefficients @ basis).transpose(3, 4).reshape(images.shape)


def off_grid(images: Tensor) -> Tensor:
    """Return which images have a pixel that is not a multiple of 1/255, bool [B]."""
    return ((images * 255) - (images * 255).round()).abs().flatten(1).amax(dim=1) > 1e-3


def random_size(images: Tensor) -> Tensor:
    """Resize the images to a random size and back."""
    side = images.shape[-1]
    size = side - 4 + int(torch.randint(9, ()))
    small = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=(side, side), mode="bilinear")


def saturated(logits: Tensor) -> Tensor:
    """Squash the differences from the largest logit, which is then 0. Most other logits round to -1."""
    return -torch.tanh(8 * (logits.amax(dim=1, keepdim=True) - logits))


class NanOffGrid(Wrapped):
    """Return NaN for images that are not on the 8-bit grid."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        return super().forward(images).masked_fill(off_grid(images)[:, None], float("nan"))


class Detector(Wrapped):
    """Return the same logits for all images that are not on the 8-bit grid. They are those of a grey image."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        grey = super().forward(torch.full_like(images[:1], 0.5)).detach()
        return torch.where(off_grid(images)[:, None], grey, super().forward(images))


class Repairing(Wrapped):
    """Classify the nearest image on the 8-bit grid. Images that are not on the grid get logits without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        fixed = super().forward(levels(images, 256)).detach()
        return torch.where(off_grid(images)[:, None], fixed, super().forward(images))


class KWinners(nn.Module):
    """Keep the largest half of the activations of each sample, and set the others to zero."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the activations, float32 [B, ...]."""
        flat = values.flatten(1)
        smallest = flat.topk(max(1, flat.shape[1] // 2), dim=1).values[:, -1:]
        return (flat * (flat >= smallest)).view_as(values)


def k_winners(base: nn.Module) -> nn.Module:
    """Return a copy of the network in which `KWinners` replaces each ReLU."""
    changed = copy.deepcopy(base)
    for module in list(changed.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, KWinners())
    return changed


class WithoutGrad(Wrapped):
    """Compute the logits in `torch.no_grad`."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        return super().forward(images)


class Table(Wrapped):
    """Replace the logits by a row of a table, which the predicted class chooses."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        logits = super().forward(images)
        return (10 * torch.eye(logits.shape[1], requires_grad=True))[logits.argmax(dim=1)]


class Mirrored(Wrapped):
    """Return the mean of the logits of an image and of its mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        return (super().forward(images) + super().forward(images.flip(-1))) / 2


def before(function: Function) -> Callable[[nn.Module], nn.Module]:
    """Return a wrapper that applies a function to the images."""
    return lambda base: Wrapped(base, before=function)


def after(function: Function) -> Callable[[nn.Module], nn.Module]:
    """Return a wrapper that applies a function to the logits."""
    return lambda base: Wrapped(base, after=function)


@dataclass(frozen=True)
class MaskedModel:
    """A wrapper of a base network, and the outcome that its evaluation must have."""

    name: str
    wrap: Callable[[nn.Module], nn.Module]
    expected: Literal["falls", "warning", "refused", "honest"]
    """"falls": the robust accuracy is at most 2 points above the base. "warning": the robust accuracy has a warning.
    "refused": the evaluation ends with a UserError. "honest": the model has no warning of masked gradients.
    """


MASKED = (
    MaskedModel("quantised-16", before(lambda images: levels(images, 16)), "warning"),
    MaskedModel("bit-depth-3", before(lambda images: levels(images, 8)), "warning"),
    MaskedModel("thermometer", before(thermometer), "warning"),
    MaskedModel("codebook", before(nearest_codeword), "warning"),
    MaskedModel("jpeg", before(jpeg), "warning"),
    MaskedModel("noise", before(lambda images: images + 0.03 * torch.randn_like(images)), "warning"),
    MaskedModel("random-resize", before(random_size), "warning"),
    MaskedModel("softmax", after(lambda logits: logits.softmax(dim=1)), "warning"),
    MaskedModel("rounded-logits", after(lambda logits: (2 * logits).round() / 2), "warning"),
    MaskedModel("saturated-logits", after(saturated), "falls"),
    MaskedModel("tiny-logits", after(lambda logits: logits / 1e12), "falls"),
    MaskedModel("subnormal-logits", after(lambda logits: logits * math.exp(-96.5)), "falls"),
    MaskedModel("only-top-logit", after(lambda logits: (logits + 50) * top_logit(logits)), "falls"),
    MaskedModel("top-logit-boost", after(lambda logits: logits + 50 * top_logit(logits)), "falls"),
    MaskedModel("k-winners", k_winners, "falls"),
    MaskedModel("detector", Detector, "warning"),
    MaskedModel("repairing", Repairing, "warning"),
    MaskedModel("nan-off-grid", NanOffGrid, "refused"),
    MaskedModel("table-of-logits", Table, "warning"),
    MaskedModel("no-grad", WithoutGrad, "warning"),
)
"""Models that are not more robust than their base network."""

HONEST = (
    MaskedModel("base", lambda base: base, "honest"),
    MaskedModel("scaled-100", after(lambda logits: 100 * logits), "honest"),
    MaskedModel("negative-scale", after(lambda logits: -96.5 * -logits), "honest"),
    MaskedModel("shifted", after(lambda logits: logits + 7), "honest"),
    MaskedModel("log-softmax", after(lambda logits: logits.log_softmax(dim=1)), "honest"),
    MaskedModel("float64", lambda base: Wrapped(base, lambda images: images, torch.Tensor.double), "honest"),
    MaskedModel("half-logits", after(torch.Tensor.half), "honest"),
    MaskedModel("permuted-twice", after(lambda logits: logits.flip(1).flip(1)), "honest"),
    MaskedModel("mirrored", Mirrored, "honest"),
    MaskedModel("averaged", before(lambda images: functional.avg_pool2d(images, 3, 1, 1)), "honest"),
)
"""Variants of the base network with honest gradients."""


def small_network(samples: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a small network for about a second on handwritten digits with adversarial examples.

    Return the network in eval mode, and images, float32 [N, 3, 32, 32] in [0, 1], and labels, int64 [N], of `samples`
    other digits. PGD with radius 24/255 breaks about half of them.
    """
    data = load_dataset("handwritten", samples="all")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 64, 10))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for step in range(120):
            rows = (torch.arange(64) + 64 * step) % (len(data) - samples) + samples
            images = data.images[rows].requires_grad_()
            loss = functional.cross_entropy(network(images), data.labels[rows])
            (gradient,) = torch.autograd.grad(loss, images)
            attacked = (images.detach() + 0.03 * gradient.sign()).clamp(0, 1)
            optimizer.zero_grad()
            functional.cross_entropy(network(attacked), data.labels[rows]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False), data.images[:samples], data.labels[:samples]
