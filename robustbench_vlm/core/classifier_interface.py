"""The interface between models and attacks: `Classifier`, and an adapter for torch modules and functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Classifier(Protocol):
    """A function from images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C].

    Each row of logits depends only on its own image. A classifier may be bound to B samples, for example because it
    draws random numbers per sample or because the samples have different classes. Callers then pass one image per
    sample, in the order of the samples. `select` returns the classifier of a subset of the samples.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""

    def select(self, index: Tensor) -> "Classifier":
        """Return the classifier of the samples at positions `index`, int64 [K]."""

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return how many forward and backward passes one sample needs, with or without the gradient of its loss."""


@dataclass(frozen=True)
class PlainClassifier:
    """An adapter that makes a `Classifier` of a torch module or of another function from images to logits.

    All samples use the same function, and one call costs one forward pass per sample.
    """

    logits: Callable[[Tensor], Tensor]
    """The function from images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C]."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        return self.logits(images)

    def select(self, index: Tensor) -> "PlainClassifier":
        """Return this classifier unchanged, because it is the same function for all samples; `index` is int64 [K]."""
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return one forward pass, and one backward pass if `gradient` is true."""
        return 1, int(gradient)


ClassifierLike = Classifier | Callable[[Tensor], Tensor]
"""A `Classifier`, a torch module, or another function from images to logits.

The images are float32 [B, 3, H, W] in [0, 1], and the logits are float32 [B, C].
"""


def as_classifier(model: ClassifierLike) -> Classifier:
    """Return a `Classifier` unchanged, and wrap any other function in a `PlainClassifier`."""
    return model if isinstance(model, Classifier) else PlainClassifier(model)
