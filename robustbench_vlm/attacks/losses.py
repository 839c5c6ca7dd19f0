"""Losses that attacks maximise, one number for each sample, never averaged (arXiv:2003.01690, section 4).

Rows of one batch may differ in their classes: the logits of classes that a row lacks are minus infinity.
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

    Cross-entropy is the softplus of it, so both give samples the same order and gradients the same direction. The
    log-odds do not vanish when float32 rounds p to 1, as it does at CLIP's logit scale of 100.
    """
    return _without(logits, labels).logsumexp(dim=1) - _pick(logits, labels)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the softmax, shape (B,), which released code attacks with.

    Its gradient has the factor 1 - p, which rounds to zero for confident predictions.
    """
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the largest other logit minus the label's, shape (B,) (arXiv:1608.04644, f6)."""
    return _without(logits, labels).amax(dim=1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference of logits ratio, shape (B,) (arXiv:2003.01690, equation 6).

    Rows with fewer than 3 classes use the margin instead.
    """
    first, _, third = _largest(logits, 3)
    return margin(logits, labels, targets) / _spread(first - third)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the target's logit minus the label's, shape (B,)."""
    return _pick(logits, targets) - _pick(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, (B,) (arXiv:2003.01690, equation 7).

    Rows with fewer than 4 classes use the targeted margin instead.
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


def loss_warnings(name: str, num_classes: Tensor) -> dict[str, Tensor]:
    """Return the warning code, if any, with the samples (B,), bool, that have too few classes for the named loss."""
    needed = _NEEDS.get(name, 2)
    few = num_classes < needed
    return {f"{name}-needs-{needed}-classes": few} if bool(few.any()) else {}


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the likeliest classes other than the label, (B, min(count, C - 1)), and the number of them for each row.

    Equal logits keep the order of the classes. The number (B,), int64, is lower for rows that lack classes.
    """
    others = _without(logits, labels)
    order = others.argsort(dim=1, descending=True, stable=True)
    targets = order[:, : min(count, logits.shape[1] - 1)]
    return targets, others.isfinite().sum(dim=1).clamp_max(targets.shape[1])


def _largest(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    missing = max(0, count - logits.shape[1])
    return functional.pad(logits, (0, missing), value=-float("inf")).topk(count, dim=1).values.unbind(dim=1)


def _spread(difference: Tensor) -> Tensor:
    # Infinite for rows with too few classes: nothing is divided there.
    return torch.where(difference.isfinite(), difference + _TINY, 1.0)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -float("inf"))
