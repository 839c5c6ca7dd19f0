"""What an attack may ask of a classifier: logits, and the gradient of a summed per-sample loss, both counted."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_vlm.attacks.stage import Logits
from robustbench_vlm.errors import UserError


def checked_logits(classifier: Logits, images: Tensor) -> Tensor:
    """Classify images (B, 3, H, W) and return logits (B, C) in float32 or better.

    Raises UserError where a logit is not a finite number: such a sample is neither robust nor broken.
    """
    logits = classifier(images)
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
    with torch.no_grad():
        return torch.cat([checked_logits(classifier, chunk) for chunk in images.split(slots)])


class Oracle:
    """A classifier that counts its calls; each call passes every sample in the slots once."""

    def __init__(self, classifier: Logits) -> None:
        self.classifier = classifier
        self.forward = 0
        self.backward = 0
        self.notes: set[str] = set()

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, C) without building a graph."""
        self.forward += 1
        with torch.no_grad():
            return checked_logits(self.classifier, images)

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
            self.notes.add("non-finite-gradient")
            gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return logits.detach(), losses.detach(), gradient
