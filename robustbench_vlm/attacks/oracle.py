"""What an attack may ask of a classifier: logits, and the gradient of a summed per-sample loss, both counted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.stage import Logits
from robustbench_vlm.errors import UserError


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


def logits_of(classifier: Logits, index: Tensor) -> Logits:
    """Return the classifier of the samples at `index` (int64) of those that `classifier` is called with."""
    if isinstance(classifier, MixedLogits):
        return MixedLogits(classifier.union, classifier.columns[index], classifier.absent[index])
    return classifier


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


def chunked_logits(classifier: Logits, images: Tensor, slots: int) -> Tensor:
    """Classify images (B, 3, H, W) without gradients, at most `slots` at once, and return logits (B, C)."""
    parts = torch.arange(len(images), device=images.device).split(slots)
    with torch.no_grad():
        return torch.cat([checked_logits(logits_of(classifier, part), images[part]) for part in parts])


class Oracle:
    """A classifier that counts its calls; each call passes every sample in the slots once."""

    def __init__(self, classifier: Logits) -> None:
        self.classifier = classifier
        self.forward = 0
        self.backward = 0
        self.notes: dict[str, Tensor] = {}
        """Warning codes, each with the rows of the last call that had it."""

    def logits(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return logits (B, C) without building a graph; `rows` says of which row each image is, if not one of each."""
        self.forward += 1
        classifier = self.classifier if rows is None else logits_of(self.classifier, rows)
        with torch.no_grad():
            return checked_logits(classifier, images)

    def gradient(self, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, C), losses (B,) and the gradient of their sum at the images, (B, 3, H, W).

        `loss` maps logits to one number per sample. A non-finite gradient becomes zero and is noted.
        """
        self.forward += 1
        self.backward += 1
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            logits = checked_logits(self.classifier, leaf)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        if not torch.isfinite(gradient.sum()):
            self.notes["non-finite-gradient"] = ~torch.isfinite(gradient.flatten(1)).all(dim=1)
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), losses.detach(), gradient
