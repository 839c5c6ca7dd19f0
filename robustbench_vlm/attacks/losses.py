"""Per-sample losses that attacks maximise (arXiv:2003.01690, section 4).

All losses map logits float32 (B, C), labels int64 (B,) and target classes int64 (B,) to losses float32 (B,). Samples of
one batch may come from datasets with different numbers of classes. If a dataset has fewer than C classes, the logits of
its samples are minus infinity in the remaining columns.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Type of a loss. Its arguments are logits (B, C), labels (B,) and targets (B,), and it returns losses (B,). Untargeted
losses ignore the targets."""

# This constant is added to the denominator of DLR, which is zero if all logits are equal. The constant is far below the
# difference of any two unequal float32 logits.
_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the log-odds against the label, float32 (B,). They are log((1 - p) / p), with the label's probability p.

    Cross-entropy is the softplus of this value. Therefore both losses rank images equally, and their gradients have the
    same direction. At CLIP's logit scale of 100 float32 often rounds p to 1. The gradient of cross-entropy is then
    zero, but the gradient of the log-odds is not.
    """
    return _without(logits, labels).logsumexp(dim=1) - _pick(logits, labels)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the softmax, float32 (B,). The released code of several defenses uses this loss.

    The gradient of the loss has the factor 1 - p, with the label's probability p. The factor rounds to zero if p is
    close to 1.
    """
    return functional.cross_entropy(logits, labels, reduction="none")


def soft_label_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy with the softmax and a smoothed label, float32 (B,) (arXiv:1512.00567, section 7).

    The label has the weight 0.9, and all classes of the dataset share the weight 0.1. All logits have a gradient.
    """
    present = logits.isfinite()
    shares = 0.1 * present / present.sum(dim=1, keepdim=True)
    weights = shares.scatter_add(1, labels[:, None], torch.full_like(shares[:, :1], 0.9))
    return logits.logsumexp(dim=1) - (weights * logits.masked_fill(~present, 0)).sum(dim=1)


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the largest logit of another class minus the label's logit, float32 (B,) (arXiv:1608.04644, f6)."""
    return _without(logits, labels).amax(dim=1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the difference of logits ratio, float32 (B,) (arXiv:2003.01690, equation 6).

    Samples with fewer than 3 classes get the margin instead.
    """
    first, _, third = _largest(logits, 3)
    return margin(logits, labels, targets) / _spread(first - third)


def probability_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 + m), float32 (B,). m is the probability margin (arXiv:2411.15210), between -1 and 1.

    m is the largest probability of another class minus the probability of the label. The logarithm ranks images as m
    does, and its gradient has the same direction. At CLIP's logit scale of 100, float32 often rounds m to -1, and the
    gradient of m is then zero. The logarithm is computed from the logits, so it has neither problem.
    """
    others = _without(logits, labels)
    doubled = torch.cat([others, others.amax(dim=1, keepdim=True)], dim=1)
    return doubled.logsumexp(dim=1) - logits.logsumexp(dim=1)


def other_log_probability(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the logarithm of the largest probability of a class other than the label, float32 (B,)."""
    return _without(logits, labels).amax(dim=1) - logits.logsumexp(dim=1)


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
    "soft-ce": soft_label_cross_entropy,
    "margin": margin,
    "pm": probability_margin,
    "dlr": dlr,
    "targeted-dlr": targeted_dlr,
}
TARGETED_LOSSES = ("targeted-dlr",)
"""The losses that need a target class for each sample."""
_NEEDS = {"dlr": 3, "targeted-dlr": 4}
"""The smallest number of classes for which a loss is defined."""


def loss_warnings(name: str, num_classes: Tensor) -> dict[str, Tensor]:
    """Return a warning for samples of datasets with too few classes for the loss `name`.

    `num_classes`, int64 (B,), is the number of classes of each sample's dataset. The returned dict maps the code of the
    warning to a mask of the samples with too few classes, bool (B,). It is empty if all samples have enough classes.
    """
    needed = _NEEDS.get(name, 2)
    few = num_classes < needed
    return {f"{name}-needs-{needed}-classes": few} if bool(few.any()) else {}


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return target classes, int64 (B, min(count, C - 1)), and the number of targets of each sample, int64 (B,).

    The targets are the classes with the highest logits, except the label. They are sorted from high to low. Classes
    with equal logits keep their order. A sample has fewer targets if its dataset has too few classes. The remaining
    values in the row of such a sample are not used.
    """
    others = _without(logits, labels)
    order = others.argsort(dim=1, descending=True, stable=True)
    targets = order[:, : min(count, logits.shape[1] - 1)]
    return targets, others.isfinite().sum(dim=1).clamp_max(targets.shape[1])


def _largest(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    missing = max(0, count - logits.shape[1])
    return functional.pad(logits, (0, missing), value=-float("inf")).topk(count, dim=1).values.unbind(dim=1)


def _spread(difference: Tensor) -> Tensor:
    # A loss is divided by the difference of logits. If a dataset has too few classes for the loss, the difference is
    # infinite. The divisor is then 1, so the loss is the margin.
    return torch.where(difference.isfinite(), difference + _TINY, 1.0)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -float("inf"))
