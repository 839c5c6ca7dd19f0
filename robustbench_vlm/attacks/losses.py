"""Per-sample losses that attacks maximise (arXiv:2003.01690, section 4).

All losses map logits float32 (B, C), labels int64 (B,) and target classes int64 (B,) to losses float32 (B,). Samples of
one batch may come from datasets with different numbers of classes: the logits of missing classes are minus infinity.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Type of a loss: logits (B, C), labels (B,) and targets (B,) to losses (B,). Untargeted losses ignore the targets."""

# Added to a denominator so that it is not zero if all logits are equal. It is far below the difference of any two
# unequal float32 logits.
_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return log((1 - p) / p), the log-odds against the label with probability p, float32 (B,).

    Cross-entropy is the softplus of this value, so both losses rank images equally and their gradients have the same
    direction. At CLIP's logit scale of 100 float32 often rounds p to 1. The gradient of cross-entropy is then zero, but
    the gradient of the log-odds is not.
    """
    return _without(logits, labels).logsumexp(dim=1) - _pick(logits, labels)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the softmax, float32 (B,), the loss of the released code of several defenses.

    Its gradient has the factor 1 - p. The factor rounds to zero if p, the probability of the label, is close to 1.
    """
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the largest logit except the label's, minus the label's logit, float32 (B,) (arXiv:1608.04644, f6)."""
    return _without(logits, labels).amax(dim=1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference of logits ratio, float32 (B,) (arXiv:2003.01690, equation 6).

    Samples with fewer than 3 classes get the margin instead.
    """
    first, _, third = _largest(logits, 3)
    return margin(logits, labels, targets) / _spread(first - third)


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of the target minus the logit of the label, float32 (B,)."""
    return _pick(logits, targets) - _pick(logits, labels)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio, float32 (B,) (arXiv:2003.01690, equation 7).

    Samples with fewer than 4 classes get the targeted margin instead.
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
"""The smallest number of classes for which a loss is defined."""


def loss_warnings(name: str, num_classes: Tensor) -> dict[str, Tensor]:
    """Return the warning about samples with too few classes for a loss; an empty dict if there are none.

    `num_classes` is the number of classes of each sample, int64 (B,). The dict maps the warning code to a mask of these
    samples, bool (B,).
    """
    needed = _NEEDS.get(name, 2)
    few = num_classes < needed
    return {f"{name}-needs-{needed}-classes": few} if bool(few.any()) else {}


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return target classes, int64 (B, min(count, C - 1)), and the number of them for each sample, int64 (B,).

    The targets are the classes with the highest logits except the label, from high to low. Classes with equal logits
    keep their order. Samples of datasets with fewer classes have fewer targets; the rest of their row is not used.
    """
    others = _without(logits, labels)
    order = others.argsort(dim=1, descending=True, stable=True)
    targets = order[:, : min(count, logits.shape[1] - 1)]
    return targets, others.isfinite().sum(dim=1).clamp_max(targets.shape[1])


def _largest(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    missing = max(0, count - logits.shape[1])
    return functional.pad(logits, (0, missing), value=-float("inf")).topk(count, dim=1).values.unbind(dim=1)


def _spread(difference: Tensor) -> Tensor:
    # The difference is infinite for samples with too few classes. Their margin is divided by 1.
    return torch.where(difference.isfinite(), difference + _TINY, 1.0)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -float("inf"))
