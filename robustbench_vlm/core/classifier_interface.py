"""The contract between a model and an attack: `Classifier`, and the adapter for plain torch modules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Classifier(Protocol):
    """Maps images (B, 3, H, W) in [0, 1] to logits (B, C), float32; each row depends only on its own image.

    A classifier may be bound to samples, for example by their random numbers or by their dataset's classes. It is then
    called with one image for each of its samples, in their order, and `select` narrows it to some of them.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits (B, C)."""

    def select(self, index: Tensor) -> "Classifier":
        """Return the classifier of the samples at `index` (int64)."""

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one sample in a call, with or without the gradient of its loss."""


@dataclass(frozen=True)
class PlainClassifier:
    """A torch module, or any other function from images to logits, as a `Classifier`.

    It is the same function for all samples, and a call costs one forward pass.
    """

    logits: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits (B, C)."""
        return self.logits(images)

    def select(self, index: Tensor) -> "PlainClassifier":
        """Return the classifier itself, which is the same for all samples."""
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return one forward pass, and one backward pass if a gradient is asked for."""
        return 1, int(gradient)


ClassifierLike = Classifier | Callable[[Tensor], Tensor]
"""A classifier, or a torch module or other function from images (B, 3, H, W) in [0, 1] to logits (B, C)."""


def as_classifier(model: ClassifierLike) -> Classifier:
    """Return a classifier as it is, and any other function from images to logits as a `PlainClassifier`."""
    return model if isinstance(model, Classifier) else PlainClassifier(model)
