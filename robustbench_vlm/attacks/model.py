"""Wrappers of classifiers for attacks: counted passes, checked logits, transfer attacks and several datasets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import GradientMode
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError


class NoGradientError(UserError):
    """The logits of a model have no gradient with respect to the images."""


class CountedClassifier:
    """A classifier that counts its passes and computes gradients of losses with respect to the images."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.judge = classifier.judge if isinstance(classifier, SurrogateClassifier) else None
        self.forward = 0
        """Forward passes of each sample so far, int64 (B,). Each call adds its passes to all samples of its batch."""
        self.backward = 0
        """Backward passes of each sample so far."""
        self.gradients = 0
        """Gradients of each sample so far. A mean over several draws is one gradient."""
        self.zero_gradients: Tensor | int = 0
        """The number of these gradients that were exactly zero, int64 (B,). It is 0 before the first gradient."""
        self.warnings: dict[str, Tensor] = {}
        """Warnings. The keys are codes. Each value is a mask of samples, bool (B,), from the last call that raised the
        warning.
        """

    def logits(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the logits float32 (N, C) of images (N, 3, H, W), without a gradient.

        `rows`, int64 (N,), has the index of the sample of each image. If it is None, there is one image per sample, in
        the same order.
        """
        return self._classify(self.classifier, images, rows)

    def misclassified(self, images: Tensor, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return whether each image (N, 3, H, W) is misclassified, bool (N,).

        `logits` (N, C) are the logits of the images. A `SurrogateClassifier` ignores them and classifies the images
        with its judge, the classifier that decides the verdicts. `labels` is int64 (N,). `rows`, int64 (N,), has the
        index of the sample of each image.
        """
        if self.judge is not None:
            logits = self._classify(self.judge, images, rows)
        return logits.argmax(dim=1) != labels

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), losses (B,) and the gradient of the summed losses at the images, (B, 3, H, W).

        All values have the dtype of the images. `loss` maps logits (B, C) to losses (B,). Non-finite values of the
        gradient are replaced by zero, and the sample gets the warning "non-finite-gradient". Raises NoGradientError if
        the logits have no gradient with respect to the images. For a `DrawingClassifier`, the values are means over its
        draws.
        """
        self._count(self.classifier, gradient=True)
        draws = draws_at(self.classifier, images)
        logits, losses, gradient = self._gradient_of(draws[0], images, loss)
        if len(draws) > 1:
            parts = zip(*(self._gradient_of(each, images, loss) for each in draws[1:]), strict=True)
            sums = (sum(part, first) for part, first in zip(parts, (logits, losses, gradient), strict=True))
            logits, losses, gradient = (total / len(draws) for total in sums)
        if not torch.isfinite(gradient.sum()):
            self.warnings["non-finite-gradient"] = ~torch.isfinite(gradient.flatten(1)).all(dim=1)
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self.gradients += 1
        self.zero_gradients = self.zero_gradients + ~gradient.flatten(1).any(dim=1)
        return logits, losses, gradient

    @staticmethod
    def _gradient_of(
        classifier: Classifier, images: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = checked_logits(classifier, leaf)
            losses = loss(logits)
            gradient = None
            if losses.requires_grad:
                (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise NoGradientError(
                "the logits of the model have no gradient with respect to the images, but this attack needs one: remove"
                " torch.no_grad, torch.inference_mode and .detach() from the model's code, or use the attack adaptive,"
                " which also attacks a surrogate, or an attack without gradients, such as square"
            )
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
    """A pair of classifiers. The attack gets logits and gradients from the first, called the surrogate.

    Only the second, called the judge, decides whether an image is misclassified. Transfer attacks use this class.
    Attacks in low precision also use it: their judge is the same model in a higher precision.
    """

    surrogate: Classifier
    judge: Classifier

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of the surrogate (the attacked classifier), float32 (B, C), for images (B, 3, H, W)."""
        return checked_logits(self.surrogate, images)

    def select(self, index: Tensor) -> "SurrogateClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,).

        Both classifiers of the copy, the attacked one and the one that decides verdicts, are for these samples.
        """
        return SurrogateClassifier(self.surrogate.select(index), self.judge.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of the surrogate, the attacked classifier.

        Calls of the judge (the classifier that decides verdicts) are counted separately.
        """
        return self.surrogate.cost(gradient=gradient)


@dataclass(frozen=True)
class ScaledClassifier:
    """A classifier whose logits are multiplied by a positive factor for each sample. Its predictions are the same."""

    classifier: Classifier
    factor: Tensor
    """The factor of each sample, float32 (B,)."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the scaled logits, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        return checked_logits(self.classifier, images) * self.factor[:, None]

    def select(self, index: Tensor) -> "ScaledClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return ScaledClassifier(self.classifier.select(index), self.factor[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call. They equal the passes of `classifier`."""
        return self.classifier.cost(gradient=gradient)

    def draws_at(self, images: Tensor) -> Sequence[Classifier]:
        """Return one classifier for each draw of the gradient at images (B, 3, H, W)."""
        return [ScaledClassifier(each, self.factor) for each in draws_at(self.classifier, images)]


@dataclass(frozen=True)
class MultiDatasetClassifier:
    """A classifier for a batch with samples of several datasets.

    Each sample is classified among the classes of its own dataset. C is the largest number of classes of a dataset. If
    a sample has fewer classes, its remaining logits are -inf.
    """

    union: Classifier
    """The classifier among the classes of all datasets together."""
    columns: Tensor
    """For each sample, the columns of its classes in the logits of the classifier `union`, int64 (B, C)."""
    absent: Tensor
    """A mask of the unused logits, bool (B, C). If the dataset of a sample has K classes, the mask is True in the last
    C - K columns.
    """

    @classmethod
    def of_ranges(cls, union: Classifier, first: Tensor, num_classes: Tensor) -> "MultiDatasetClassifier":
        """Return a classifier for a batch with samples of several datasets.

        `union` classifies among the classes of all datasets. The classes of a sample are consecutive columns of its
        logits. `first`, int64 (B,), is the column of each sample's first class. `num_classes`, int64 (B,), is the
        number of classes of each sample's dataset.
        """
        place = torch.arange(int(num_classes.max()), device=first.device)
        absent = place >= num_classes[:, None]
        return cls(union, (first[:, None] + place).masked_fill(absent, 0), absent)

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        assert len(images) == len(self.columns), f"{len(images)} images for {len(self.columns)} samples"
        logits = checked_logits(self.union, images)
        return logits.gather(1, self.columns).masked_fill(self.absent, -float("inf"))

    def select(self, index: Tensor) -> "MultiDatasetClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return MultiDatasetClassifier(self.union, self.columns[index], self.absent[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call. They equal the passes of `union`."""
        return self.union.cost(gradient=gradient)


def with_surrogate(classifier: Classifier, change: Callable[[Classifier], Classifier]) -> Classifier:
    """Return the classifier that `change` returns for the attacked classifier. The same judge decides the verdicts.

    `change` must not change predictions unless `classifier` has a judge.
    """
    if isinstance(classifier, SurrogateClassifier):
        return SurrogateClassifier(change(classifier.surrogate), classifier.judge)
    return change(classifier)


@runtime_checkable
class AdaptiveClassifier(Classifier, Protocol):
    """A classifier with a test-time defense or a surrogate. Its gradient can be computed in several modes."""

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return a classifier with the same verdicts. Its gradient is computed in the given mode."""


@runtime_checkable
class DrawingClassifier(Classifier, Protocol):
    """A random classifier whose gradient is a mean over several draws of its random numbers."""

    def draws_at(self, images: Tensor) -> Sequence[Classifier]:
        """Return one classifier for each draw. Other images (B, 3, H, W) have other draws."""


def draws_at(classifier: Classifier, images: Tensor) -> Sequence[Classifier]:
    """Return the classifiers of which `CountedClassifier.gradient` takes the mean: usually only the given one.

    `images` are the images (B, 3, H, W) at which the gradient is computed. A wrapper of a random classifier has a
    method `draws_at`, which returns a wrapper of each draw.
    """
    if isinstance(classifier, SurrogateClassifier):
        return draws_at(classifier.surrogate, images)
    return classifier.draws_at(images) if isinstance(classifier, DrawingClassifier) else [classifier]


def with_gradient(classifier: Classifier, mode: GradientMode | None) -> Classifier:
    """Return a classifier with gradients that are computed in `mode`.

    If `mode` is None, return the classifier itself. Raises UserError if the mode needs a model without the defense, but
    the classifier has no defense and no surrogate.
    """
    if mode is None:
        return classifier
    if isinstance(classifier, AdaptiveClassifier):
        return classifier.with_gradient(mode)
    # This module has the classes that surrogate_gradients needs.
    from robustbench_vlm.attacks.surrogate_gradients import differentiated

    return differentiated(classifier, None, mode)


def checked_logits(classifier: Classifier, images: Tensor) -> Tensor:
    """Classify images (B, 3, H, W) and return logits (B, C) in the dtype of the images.

    Raises UserError if a logit is not finite. Non-finite logits do not define a prediction.
    """
    logits = classifier(images)
    # These classes have already checked the logits of the classifiers inside them. After the check,
    # `MultiDatasetClassifier` adds -inf at the positions of classes that a dataset does not have.
    if isinstance(classifier, SurrogateClassifier | ScaledClassifier | MultiDatasetClassifier):
        return logits
    assert logits.dim() == 2 and len(logits) == len(images), f"logits {tuple(logits.shape)} for {len(images)} images"
    # Attacks store losses and logits in the dtype of the images. Logits of float16, bfloat16 and float64 are cast.
    logits = logits.to(images.dtype)
    # Checking the sum of all logits is faster than checking each logit. The sum is finite only if every logit is
    # finite. Real logits are too small for the sum to overflow.
    if not torch.isfinite(logits.detach().sum()):
        wrong = int((~torch.isfinite(logits).all(dim=1)).sum())
        raise UserError(
            f"the model returned non-finite logits (NaN or infinity) for {wrong} of {len(images)} images, but"
            " predictions need finite logits: run the model in float32, or look for a division by zero or an"
            " overflow in it"
        )
    return logits


def logits_in_batches(classifier: Classifier, images: Tensor, batch_size: int) -> Tensor:
    """Classify images (B, 3, H, W) without a gradient, at most `batch_size` at once. Return logits float32 (B, C)."""
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    with torch.no_grad():
        return torch.cat([checked_logits(classifier.select(part), images[part]) for part in parts])
