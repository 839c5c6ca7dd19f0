"""What an attack may ask of a classifier: logits, and the gradient of a summed per-sample loss, both counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Logits, View
from robustbench_vlm.core.errors import UserError


@runtime_checkable
class SampleLogits(Protocol):
    """A classifier of certain samples, called with one image for each of them, in their order."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""

    def of(self, index: Tensor) -> "SampleLogits":
        """Return the classifier of the samples at `index` (int64)."""

    def passes(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one sample in a call, with or without its loss's gradient."""


@runtime_checkable
class Viewed(SampleLogits, Protocol):
    """A classifier that an attack may see in several ways."""

    def seen(self, view: View) -> SampleLogits:
        """Return the classifier as an attack sees it."""


@dataclass(frozen=True)
class Transferred:
    """A classifier under attack in place of another one, which alone says whether an image breaks a sample."""

    attacked: Logits
    judge: Logits

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of the classifier under attack."""
        return checked_logits(self.attacked, images)

    def of(self, index: Tensor) -> "Transferred":
        """Return the two classifiers of the samples at `index`."""
        return Transferred(logits_of(self.attacked, index), logits_of(self.judge, index))

    def passes(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes of the classifier under attack; what the judge spends is counted where it is asked."""
        return passes_of(self.attacked, gradient=gradient)


@dataclass(frozen=True)
class MixedLogits:
    """The classifier of certain samples, each with classes of its own out of all those that `union` knows.

    Called with one image for each of the samples, in their order; the logits of classes that a sample lacks are -inf.
    """

    union: Logits
    columns: Tensor
    """(B, C), int64: the places of each sample's classes among those of `union`."""
    absent: Tensor
    """(B, C), bool: where a sample has no class any more."""

    @classmethod
    def of_ranges(cls, union: Logits, first: Tensor, num_classes: Tensor) -> "MixedLogits":
        """Give each sample the `num_classes` (B,) classes from place `first` (B,) on."""
        place = torch.arange(int(num_classes.max()), device=first.device)
        absent = place >= num_classes[:, None]
        return cls(union, (first[:, None] + place).masked_fill(absent, 0), absent)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (B, C)."""
        assert len(images) == len(self.columns), f"{len(images)} images for {len(self.columns)} samples"
        logits = checked_logits(self.union, images)
        return logits.gather(1, self.columns).masked_fill(self.absent, -float("inf"))

    def of(self, index: Tensor) -> "MixedLogits":
        """Return the classifier of the samples at `index`."""
        return MixedLogits(self.union, self.columns[index], self.absent[index])

    def passes(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes of one call: the classes of others cost none."""
        return passes_of(self.union, gradient=gradient)


def logits_of(classifier: Logits, index: Tensor) -> Logits:
    """Return the classifier of the samples at `index` (int64) of those that `classifier` is called with."""
    return classifier.of(index) if isinstance(classifier, SampleLogits) else classifier


def seen_in(classifier: Logits, view: View | None) -> Logits:
    """Return a classifier as a stage with that view attacks it."""
    if view is None:
        return classifier
    assert isinstance(classifier, Viewed), "only a procedure is attacked in views"
    return classifier.seen(view)


def passes_of(classifier: Logits, *, gradient: bool) -> tuple[int, int]:
    """Return the forward and backward passes of one sample in a call, with or without its loss's gradient."""
    return classifier.passes(gradient=gradient) if isinstance(classifier, SampleLogits) else (1, int(gradient))


def checked_logits(classifier: Logits, images: Tensor) -> Tensor:
    """Classify images (B, 3, H, W) and return logits (B, C) in float32 or better.

    Raises UserError where a logit is not a finite number: such a sample is neither robust nor broken.
    """
    logits = classifier(images)
    if isinstance(classifier, MixedLogits):
        return logits
    assert logits.dim() == 2 and len(logits) == len(images), f"logits {tuple(logits.shape)} for {len(images)} images"
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # One sum instead of a mask: it is finite exactly where all are, short of an overflow that no float32 logits reach.
    if not torch.isfinite(logits.detach().sum()):
        wrong = int((~torch.isfinite(logits).all(dim=1)).sum())
        raise UserError(
            f"the model returned non-finite logits (NaN or infinity) for {wrong} of {len(images)} images: no verdict "
            "can be given; run the model in float32 and look for a division by zero or an overflow in it"
        )
    return logits


def chunked_logits(classifier: Logits, images: Tensor, batch_size: int) -> Tensor:
    """Classify images (B, 3, H, W) without gradients, at most `batch_size` at once, and return logits (B, C)."""
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    with torch.no_grad():
        return torch.cat([checked_logits(logits_of(classifier, part), images[part]) for part in parts])


class Oracle:
    """A classifier that counts its passes; each call is for every sample in the batch_size."""

    def __init__(self, classifier: Logits) -> None:
        self.classifier = classifier
        self.judge = classifier.judge if isinstance(classifier, Transferred) else None
        self.forward = 0
        self.backward = 0
        self.notes: dict[str, Tensor] = {}
        """Warning codes, each with the rows of the last call that had it."""

    def logits(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (B, C) without building a graph; `rows` says of which row each image is, if not one of each."""
        return self._classify(self.classifier, images, rows)

    def broken(self, images: Tensor, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Say which images, (B,), bool, are misclassified, given their logits; of a transferred attack the judge does.

        `rows` are as in `logits`.
        """
        if self.judge is not None:
            logits = self._classify(self.judge, images, rows)
        return logits.argmax(dim=1) != labels

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), losses (B,) and the gradient of their sum at the images, (B, 3, H, W).

        `loss` maps logits to one number per sample. A non-finite gradient becomes zero and is noted.
        """
        self._count(self.classifier, gradient=True)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = checked_logits(self.classifier, leaf)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if not torch.isfinite(gradient.sum()):
            self.notes["non-finite-gradient"] = ~torch.isfinite(gradient.flatten(1)).all(dim=1)
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), losses.detach(), gradient

    def _classify(self, classifier: Logits, images: Tensor, rows: Tensor | None) -> Tensor:
        self._count(classifier, gradient=False)
        with torch.no_grad():
            return checked_logits(classifier if rows is None else logits_of(classifier, rows), images)

    def _count(self, classifier: Logits, *, gradient: bool) -> None:
        forward, backward = passes_of(classifier, gradient=gradient)
        self.forward += forward
        self.backward += backward
