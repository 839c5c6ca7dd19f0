"""The interface between models and attacks: `Classifier`, and an adapter for torch modules and functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Classifier(Protocol):
    """A function from images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C].

    The logits of an image do not depend on the other images of the batch. Some classifiers are made for one list of B
    samples, for example because they draw random numbers per sample, or because each sample has its own classes.
    Callers of such a classifier pass one image per sample, in the order of the list. `select` returns a classifier for
    some of these samples.
    """

    def __call__(self, images: "Tensor", /) -> "Tensor":
        """Return the logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""

    def select(self, index: "Tensor") -> "Classifier":
        """Return a classifier for K of this classifier's B samples. `index`, int64 [K], has their positions."""

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the numbers of forward and backward passes that one call needs per sample.

        If `gradient` is true, the numbers include the passes that compute the gradient of a loss.
        """


@dataclass(frozen=True)
class PlainClassifier:
    """An adapter that makes a `Classifier` from a torch module or another function from images to logits.

    The function is the same for all samples. One call costs one forward pass per sample.
    """

    logits: "Callable[[Tensor], Tensor]"
    """The function from images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C]."""

    def __call__(self, images: "Tensor", /) -> "Tensor":
        """Return the logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1].

        The function gets a copy of the images, because it may change them in place, for example to normalise them.
        """
        return self.logits(images.clone())

    def select(self, index: "Tensor") -> "PlainClassifier":
        """Return this classifier unchanged, because its function is the same for all samples. `index` is int64 [K]."""
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return (forward passes, backward passes): (1, 1) if `gradient` is true, and (1, 0) if it is false."""
        return 1, int(gradient)


ClassifierLike = Classifier | Callable[["Tensor"], "Tensor"]
"""Type of a model: a `Classifier`, a torch module, or another function from images, float32 [B, 3, H, W] in [0, 1], to
logits, float32 [B, C].
"""


def as_classifier(model: ClassifierLike) -> Classifier:
    """Return a `Classifier` unchanged, and wrap any other function in a `PlainClassifier`."""
    return model if isinstance(model, Classifier) else PlainClassifier(model)
