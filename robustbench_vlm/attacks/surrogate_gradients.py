"""Ways to compute the gradient of a classifier that hides it: surrogates, mean gradients and estimated gradients.

The wrappers change gradients only. The logits, and therefore the verdicts, are those of the wrapped classifier.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import GradientMode
from robustbench_vlm.attacks.model import SurrogateClassifier, checked_logits
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError

DIRECTIONS = 16
"""The number of pairs of images from which one gradient is estimated."""
_DISTANCE = 8 / 255
"""The standard deviation of the pixels of these images."""


@dataclass(frozen=True)
class StraightThroughClassifier:
    """A classifier whose gradient is the gradient of a surrogate at the same image (BPDA, arXiv:1802.00420, 4.1)."""

    classifier: Classifier
    surrogate: Classifier

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the classifier, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        with torch.no_grad():
            own = checked_logits(self.classifier, images)
        smooth = checked_logits(self.surrogate, images)
        return own + (smooth - smooth.detach())

    def select(self, index: Tensor) -> "StraightThroughClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return StraightThroughClassifier(self.classifier.select(index), self.surrogate.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of both classifiers."""
        own, other = self.classifier.cost(gradient=False), self.surrogate.cost(gradient=gradient)
        return own[0] + other[0], own[1] + other[1]


@dataclass(frozen=True)
class MeanGradientClassifier:
    """A random classifier whose gradient is the mean over several calls (EOT, arXiv:1707.07397)."""

    classifier: Classifier
    calls: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the first call, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        own = checked_logits(self.classifier, images)
        if not torch.is_grad_enabled():
            return own
        mean = sum((checked_logits(self.classifier, images) for _ in range(1, self.calls)), own) / self.calls
        return own.detach() + (mean - mean.detach())

    def select(self, index: Tensor) -> "MeanGradientClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return MeanGradientClassifier(self.classifier.select(index), self.calls)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of this class."""
        forward, backward = self.classifier.cost(gradient=gradient)
        return (self.calls * forward, self.calls * backward) if gradient else (forward, backward)


@dataclass(frozen=True)
class EstimatedGradientClassifier:
    """A classifier whose gradient is estimated from differences of logits (NES, arXiv:1804.08598).

    For random directions u, the change of the logits is (f(x + u) - f(x - u)) / 2. The directions depend only on the
    image, so that equal images have equal gradients.
    """

    classifier: Classifier
    directions: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the classifier, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        with torch.no_grad():
            own = checked_logits(self.classifier, images)
        if not torch.is_grad_enabled():
            return own
        keys = (images.detach().double() * 2**24).to(torch.int64).flatten(1).sum(dim=1)
        linear = torch.zeros_like(own)
        for number in range(self.directions):
            step = _DISTANCE * randomness.normal(keys, number, images.shape[1:])
            with torch.no_grad():
                change = self._logits(images + step) - self._logits(images - step)
            slope = (step * images).flatten(1).sum(dim=1, keepdim=True) / (2 * self.directions * _DISTANCE**2)
            linear = linear + change * slope
        return own + (linear - linear.detach())

    def select(self, index: Tensor) -> "EstimatedGradientClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return EstimatedGradientClassifier(self.classifier.select(index), self.directions)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call."""
        forward, backward = self.classifier.cost(gradient=False)
        calls = 1 + 2 * self.directions * gradient
        return calls * forward, calls * backward

    def _logits(self, images: Tensor) -> Tensor:
        return checked_logits(self.classifier, images.clamp(0, 1))


@dataclass(frozen=True)
class ClassifierWithSurrogate:
    """A classifier in memory, and a surrogate with useful gradients, such as the model without its defense."""

    classifier: Classifier
    surrogate: Classifier

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the classifier, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        return self.classifier(images)

    def select(self, index: Tensor) -> "ClassifierWithSurrogate":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return ClassifierWithSurrogate(self.classifier.select(index), self.surrogate.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of the classifier."""
        return self.classifier.cost(gradient=gradient)

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return a classifier with equal logits. Its gradient is computed in the mode `mode`."""
        return differentiated(self.classifier, self.surrogate, mode)


def differentiated(classifier: Classifier, surrogate: Classifier | None, mode: GradientMode) -> Classifier:
    """Return a classifier with equal verdicts whose gradient is computed in `mode`.

    `surrogate` is the model without its defense, or None. Raises UserError if the mode needs a surrogate or a test-time
    defense.
    """
    if mode.gradient == "transfer" and surrogate is not None:
        return SurrogateClassifier(surrogate, classifier)
    changed: Classifier
    if mode.gradient == "loop":
        changed = classifier if mode.draws == 1 else MeanGradientClassifier(classifier, mode.draws)
    elif mode.gradient == "identity":
        # This module has the classes that automatic_surrogate needs.
        from robustbench_vlm.attacks.automatic_surrogate import IdentityGradientClassifier

        changed = IdentityGradientClassifier(classifier)
    elif mode.gradient == "estimated":
        changed = EstimatedGradientClassifier(classifier, DIRECTIONS * mode.draws)
    elif mode.gradient == "straight-through" and surrogate is not None:
        changed = StraightThroughClassifier(classifier, surrogate)
    else:
        one_of = "a test-time defense" if mode.gradient in ("constant", "truncated") else "a defense or a surrogate"
        raise UserError(
            f"the gradient {mode.gradient!r} needs {one_of}, but the attacked model has none: attack DEFENSE+MODEL, or"
            " use the gradient 'loop', 'identity' or 'estimated'"
        )
    return changed if surrogate is None else ClassifierWithSurrogate(changed, surrogate)
