"""Classifiers under attack: pass counting, checked logits, and the adapters for transfer and for several datasets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import GradientMode
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError


class CountedClassifier:
    """A classifier that counts its passes for each sample, and takes gradients of losses at the images."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.judge = classifier.judge if isinstance(classifier, SurrogateClassifier) else None
        self.forward = 0
        self.backward = 0
        """Passes of one sample so far; each call is counted for every sample of the batch."""
        self.warnings: dict[str, Tensor] = {}
        """Warning codes, each with the rows, (B,), bool, of the last call that had it."""

    def logits(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (B, C) without building a graph.

        `rows` names the row that each image belongs to; None: one image for each row, in their order.
        """
        return self._classify(self.classifier, images, rows)

    def misclassified(self, images: Tensor, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return which images are misclassified, (B,), bool, given their logits; of a surrogate its judge decides.

        `rows` are as in `logits`.
        """
        if self.judge is not None:
            logits = self._classify(self.judge, images, rows)
        return logits.argmax(dim=1) != labels

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), losses (B,) and the gradient of their sum at the images, (B, 3, H, W).

        `loss` maps logits to one number per sample. A non-finite gradient becomes zero and raises a warning.
        """
        self._count(self.classifier, gradient=True)
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = checked_logits(self.classifier, leaf)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if not torch.isfinite(gradient.sum()):
            self.warnings["non-finite-gradient"] = ~torch.isfinite(gradient.flatten(1)).all(dim=1)
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), losses.detach(), gradient

    def _classify(self, classifier: Classifier, images: Tensor, rows: Tensor | None) -> Tensor:
        self._count(classifier, gradient=False)
        with torch.no_grad():
            return checked_logits(classifier if rows is None else classifier.select(rows), images)

    def _count(self, classifier: Classifier, *, gradient: bool) -> None:
        forward, backward = classifier.cost(gradient=gradient)
        self.forward += forward
        self.backward += backward


@dataclass(frozen=True)
class SurrogateClassifier:
    """A classifier that is attacked in place of another one, the judge, which decides what is misclassified.

    Used for transfer attacks, and for attacks in a lower precision than that of the verdicts.
    """

    surrogate: Classifier
    judge: Classifier

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits (B, C) of the surrogate."""
        return checked_logits(self.surrogate, images)

    def select(self, index: Tensor) -> "SurrogateClassifier":
        """Return the two classifiers of the samples at `index`."""
        return SurrogateClassifier(self.surrogate.select(index), self.judge.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes of the surrogate; those of the judge are counted when it is called."""
        return self.surrogate.cost(gradient=gradient)


@dataclass(frozen=True)
class MultiDatasetClassifier:
    """The classifier of samples of several datasets: each sample has the classes of its own dataset.

    `union` knows the classes of all datasets. The logits of classes that a sample lacks are -inf.
    """

    union: Classifier
    columns: Tensor
    """(B, C), int64: the places of each sample's classes among those of `union`."""
    absent: Tensor
    """(B, C), bool: the places beyond a sample's own classes."""

    @classmethod
    def of_ranges(cls, union: Classifier, first: Tensor, num_classes: Tensor) -> "MultiDatasetClassifier":
        """Give each sample the `num_classes` (B,) classes from place `first` (B,) on."""
        place = torch.arange(int(num_classes.max()), device=first.device)
        absent = place >= num_classes[:, None]
        return cls(union, (first[:, None] + place).masked_fill(absent, 0), absent)

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits (B, C)."""
        assert len(images) == len(self.columns), f"{len(images)} images for {len(self.columns)} samples"
        logits = checked_logits(self.union, images)
        return logits.gather(1, self.columns).masked_fill(self.absent, -float("inf"))

    def select(self, index: Tensor) -> "MultiDatasetClassifier":
        """Return the classifier of the samples at `index`."""
        return MultiDatasetClassifier(self.union, self.columns[index], self.absent[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the passes of one call of the union; further classes cost no pass."""
        return self.union.cost(gradient=gradient)


@runtime_checkable
class AdaptiveClassifier(Classifier, Protocol):
    """A classifier with a test-time defense, whose gradient an attack may take in several modes."""

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return the classifier as a stage with that gradient mode attacks it."""


def with_gradient(classifier: Classifier, mode: GradientMode | None) -> Classifier:
    """Return a classifier as a stage with that gradient mode attacks it; None: as it is."""
    if mode is None:
        return classifier
    assert isinstance(classifier, AdaptiveClassifier), "only test-time defenses have gradient modes"
    return classifier.with_gradient(mode)


def checked_logits(classifier: Classifier, images: Tensor) -> Tensor:
    """Classify images (B, 3, H, W) and return logits (B, C) in float32 or better.

    Raises UserError if a logit is not finite: such a sample is neither robust nor broken.
    """
    logits = classifier(images)
    # These adapters check the classifiers that they hold; the -inf of absent classes is theirs.
    if isinstance(classifier, SurrogateClassifier | MultiDatasetClassifier):
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


def logits_in_batches(classifier: Classifier, images: Tensor, batch_size: int) -> Tensor:
    """Classify images (B, 3, H, W) without gradients, at most `batch_size` at once, and return logits (B, C)."""
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    with torch.no_grad():
        return torch.cat([checked_logits(classifier.select(part), images[part]) for part in parts])
