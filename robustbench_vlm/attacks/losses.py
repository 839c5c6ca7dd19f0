"""Losses that an attack ascends, one number per sample, never averaged (arXiv:2003.01690, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (B, C), labels (B,), targets (B,)) to losses (B,); an untargeted loss ignores the targets."""

# Keeps a quotient of equal logits finite; far below any difference of two unequal float32 logits.
_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the log-odds log((1 - p) / p) of the label, shape (B,).

    Cross-entropy is the softplus of it: equal order and equal direction of the gradient, but these do not vanish where
    float32 rounds p to 1, as it does at CLIP's logit scale of 100.
    """
    return _without(logits, labels).logsumexp(dim=1) - _pick(logits, labels)


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the largest other logit minus the label's, shape (B,) (arXiv:1608.04644, f6)."""
    return _without(logits, labels).amax(dim=1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference of logits ratio, shape (B,); needs 3 classes (arXiv:2003.01690, equation 6)."""
    largest = logits.topk(3, dim=1).values
    return margin(logits, labels, targets) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the target's logit minus the label's, shape (B,)."""
    return _pick(logits, targets) - _pick(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, (B,); needs 4 classes (arXiv:2003.01690, equation 7)."""
    largest = logits.topk(4, dim=1).values
    spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return targeted_margin(logits, labels, targets) / (spread + _TINY)


@dataclass(frozen=True)
class NamedLoss:
    """A loss, the least number of classes that it is defined for, and what stands in for it below that."""

    function: Loss
    classes: int = 2
    instead: Loss = margin
    note: str = ""


LOSSES = {
    "ce": NamedLoss(cross_entropy),
    "margin": NamedLoss(margin),
    "dlr": NamedLoss(dlr, 3, margin, "dlr-needs-3-classes"),
    "targeted-dlr": NamedLoss(targeted_dlr, 4, targeted_margin, "targeted-dlr-needs-4-classes"),
}


def loss_for(name: str, num_classes: int) -> tuple[Loss, tuple[str, ...]]:
    """Return the loss of that name for this many classes, and the note to record where another one stands in."""
    loss = LOSSES[name]
    return (loss.function, ()) if num_classes >= loss.classes else (loss.instead, (loss.note,))


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the classes other than the label from the likeliest on, (B, min(count, C - 1)), int64.

    Equal logits keep the order of the classes.
    """
    order = _without(logits, labels).argsort(dim=1, descending=True, stable=True)
    return order[:, : min(count, logits.shape[1] - 1)]


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -float("inf"))
