"""Losses that an attack ascends, one number per sample, never averaged (arXiv:2003.01690, section 4).

The logits of a class that a row does not have are minus infinity: rows of one batch may differ in their classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

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


def softmax_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy as code computes it by softmax, shape (B,).

    Its gradient has the factor 1 - p, which rounds to nothing where the model is sure: published code attacks with it.
    """
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the largest other logit minus the label's, shape (B,) (arXiv:1608.04644, f6)."""
    return _without(logits, labels).amax(dim=1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference of logits ratio, shape (B,) (arXiv:2003.01690, equation 6).

    It needs 3 classes; the margin stands in where a row has fewer.
    """
    first, _, third = _largest(logits, 3)
    return margin(logits, labels, targets) / _spread(first - third)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the target's logit minus the label's, shape (B,)."""
    return _pick(logits, targets) - _pick(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, (B,) (arXiv:2003.01690, equation 7).

    It needs 4 classes; the targeted margin stands in where a row has fewer.
    """
    first, _, third, fourth = _largest(logits, 4)
    return targeted_margin(logits, labels, targets) / _spread(first - (third + fourth) / 2)


LOSSES: Mapping[str, Loss] = {
    "ce": cross_entropy,
    "softmax-ce": softmax_cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "targeted-dlr": targeted_dlr,
}
_NEEDS = {"dlr": 3, "targeted-dlr": 4}


def loss_notes(name: str, num_classes: Tensor) -> dict[str, Tensor]:
    """Return the note on the samples (B,), bool, whose classes are too few for the loss of that name."""
    needed = _NEEDS.get(name, 2)
    few = num_classes < needed
    return {f"{name}-needs-{needed}-classes": few} if bool(few.any()) else {}


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the classes other than the label from the likeliest on, (B, min(count, C - 1)), and how many there are.

    Equal logits keep the order of the classes. A row's own number (B,), int64, is less where it lacks classes.
    """
    others = _without(logits, labels)
    order = others.argsort(dim=1, descending=True, stable=True)
    targets = order[:, : min(count, logits.shape[1] - 1)]
    return targets, others.isfinite().sum(dim=1).clamp_max(targets.shape[1])


def _largest(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    missing = max(0, count - logits.shape[1])
    return functional.pad(logits, (0, missing), value=-float("inf")).topk(count, dim=1).values.unbind(dim=1)


def _spread(difference: Tensor) -> Tensor:
    # Infinite where a row has too few classes, and then nothing to divide by.
    return torch.where(difference.isfinite(), difference + _TINY, 1.0)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -float("inf"))
