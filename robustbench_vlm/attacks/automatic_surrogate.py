"""Automatic surrogates: the same network without its last operations, with straight-through gradients of rounding.

A surrogate computes the same network, with three changes:

* Its logits are the first values of the forward pass that have the shape of the logits and predict the same classes on
  the clean images. For a network that sets all logits except the largest to zero, these are the logits before that.
* Rounding, `detach` and `sign` pass the gradient unchanged (BPDA with the identity, arXiv:1802.00420).
* `torch.no_grad` has no effect.

The changes apply to operations that torch reports to a `TorchFunctionMode`. Compiled code, NumPy and C++ extensions are
not changed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.eot import DrawnClassifier
from robustbench_vlm.attacks.model import AdaptiveClassifier, MultiDatasetClassifier, SurrogateClassifier
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate
from robustbench_vlm.core.classifier_interface import Classifier

_ROUNDING = frozenset(
    {torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix, torch.sign}
    | {Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.fix, Tensor.sign}
)
_DETACHED = frozenset({Tensor.detach, torch.detach, Tensor.data.__get__})  # type: ignore[attr-defined]
_GRADIENT_SWITCH = torch._C._set_grad_enabled
_ALIKE = 1e-3
"""Two rows of logits are equally good for an attack if one is a multiple of the other plus a constant. Their relative
difference may be this large.
"""


class StraightThrough(TorchFunctionMode):
    """Record the float outputs with a given shape, and give rounding operations the gradient of the identity."""

    def __init__(self, shape: torch.Size | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.recorded: list[Tensor] = []
        """The outputs with the shape `shape`, in the order of the forward pass."""
        self.changed = False
        """True if an operation had no gradient without this class."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function with the changes of this module."""
        if func is _GRADIENT_SWITCH:
            self.changed |= not args[0]
            return None
        if func in _DETACHED:
            self.changed |= args[0].requires_grad
            return args[0]
        found = func(*args, **(kwargs or {}))
        if func in _ROUNDING and args[0].is_floating_point():
            self.changed |= args[0].requires_grad
            found = args[0] + (found - args[0]).detach()
        if isinstance(found, Tensor) and found.shape == self.shape and found.is_floating_point():
            self.recorded.append(found)
        return found


@dataclass(frozen=True)
class AutomaticSurrogate:
    """A classifier with the changes of this module."""

    classifier: Classifier
    classes: int
    position: int
    """The index of the returned values among the outputs of the forward pass with the shape of the logits."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the surrogate, (B, C), of images (B, 3, H, W)."""
        # The mode must not see the switch of a caller, so it is entered after the caller has set it.
        with StraightThrough(torch.Size((len(images), self.classes))) as mode:
            self.classifier(images)
        # A network with branches may make fewer operations for other images. Its last output is then used.
        logits: Tensor = mode.recorded[min(self.position, len(mode.recorded) - 1)].to(images.dtype)
        return logits

    def select(self, index: Tensor) -> "AutomaticSurrogate":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return AutomaticSurrogate(self.classifier.select(index), self.classes, self.position)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call. They equal the passes of `classifier`."""
        return self.classifier.cost(gradient=gradient)


@dataclass(frozen=True)
class IdentityGradientClassifier:
    """A classifier with equal logits, whose gradient has the changes of this module."""

    classifier: Classifier

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits, (B, C), of images (B, 3, H, W)."""
        if not torch.is_grad_enabled():
            return self.classifier(images)
        with StraightThrough():
            return self.classifier(images)

    def select(self, index: Tensor) -> "IdentityGradientClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return IdentityGradientClassifier(self.classifier.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call. They equal the passes of `classifier`."""
        return self.classifier.cost(gradient=gradient)


def with_any_surrogate(classifier: Classifier, batch: Batch, batch_size: int) -> SurrogateClassifier | None:
    """Return a pair of a surrogate and a classifier, or None if there is no surrogate that differs from the classifier.

    A given surrogate is used first (`ClassifierWithSurrogate`, `DrawnClassifier`). Test-time defenses are not changed,
    because they have their own gradient modes.
    """
    if isinstance(classifier, ClassifierWithSurrogate):
        return SurrogateClassifier(classifier.surrogate, classifier.classifier)
    if isinstance(classifier, DrawnClassifier) and classifier.surrogate is not None:
        return SurrogateClassifier(classifier.surrogate, classifier)
    attacked, judge = classifier, classifier
    if isinstance(classifier, SurrogateClassifier):
        attacked, judge = classifier.surrogate, classifier.judge
    if isinstance(attacked, AdaptiveClassifier | MultiDatasetClassifier):
        return None
    rows = torch.arange(min(batch_size, len(batch.labels)), device=batch.labels.device)
    surrogate = automatic_surrogate(attacked, attacked.select(rows), batch.images[rows])
    return None if surrogate is None else SurrogateClassifier(surrogate, judge)


def automatic_surrogate(whole: Classifier, selected: Classifier, images: Tensor) -> AutomaticSurrogate | None:
    """Return the surrogate of the classifier `whole`, or None if it would have the same logits and gradients.

    `selected` classifies `images`, (B, 3, H, W), the clean images on which the predictions are compared.
    """
    leaf = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        shape = selected(leaf).shape
        with StraightThrough(shape) as mode:
            final = selected(leaf)
    prediction = final.argmax(dim=1)
    useful = [
        place
        for place, values in enumerate(mode.recorded)
        if values.requires_grad and torch.equal(values.argmax(dim=1), prediction)
    ]
    if not useful or (not mode.changed and _alike(mode.recorded[useful[0]].detach(), final.detach())):
        return None
    return AutomaticSurrogate(whole, shape[1], useful[0])


def _alike(first: Tensor, second: Tensor) -> bool:
    """Return whether each row of one tensor (B, C) is a positive multiple of a row of the other plus a constant."""
    scaled = []
    for values in (first.double(), second.double()):
        centred = values - values.mean(dim=1, keepdim=True)
        scaled.append(centred / centred.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny))
    return bool(((scaled[0] - scaled[1]).norm(dim=1) < _ALIKE).all())
