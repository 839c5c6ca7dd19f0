"""Sanity checks of models with a few passes of the clean images.

They find technical reasons why attacks on a model may fail.
"""

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.core.classifier_interface import Classifier, ClassifierLike, as_classifier

SANITY_FORWARD, SANITY_BACKWARD = 4, 1
"""Numbers of classifier calls of the sanity checks for each sample: 4 calls, of which 1 also computes a gradient."""
SANITY_CODES = ("zero-gradient", "non-finite-gradient", "unstable-output", "batch-dependent", "probability-logits")
"""The warning codes that `sanity_warnings` may return."""
REPEAT_TOLERANCE = 1e-5
"""Largest allowed difference between the logits of two equal calls, as a fraction of the largest logit. It is not zero,
because GPU kernels may add numbers in any order.
"""
BATCH_TOLERANCE = 1e-3
"""Largest allowed change of an image's logits between different batches, as a fraction of the largest logit."""


def sanity_warnings(
    model: ClassifierLike,
    batch: Batch,
    *,
    batch_size: int,
    batch_tolerance: float = BATCH_TOLERANCE,
    repeat_tolerance: float = REPEAT_TOLERANCE,
) -> list[tuple[str, ...]]:
    """Return the warning codes of each sample of a batch, in the order of the samples.

    There are four checks:

    * The gradient of the margin must be finite and not zero.
    * A second call of the classifier on the same images must give the same logits.
    * A call with other images in the batch must give the same logits.
    * The logits must not be probabilities.

    `batch_tolerance` and `repeat_tolerance` are the largest allowed changes of logits, as fractions of the largest
    logit. The call with other images passes 2 * `batch_size` images at once, and all other calls pass `batch_size`.
    """
    classifier, codes = as_classifier(model), list[tuple[str, ...]]()
    for part in torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size):
        images, own = batch.images[part], classifier.select(part)
        first, gradient = margin_gradient(own, images, batch.labels[part])
        with torch.no_grad():
            again = own(images).detach()
            twice = classifier.select(torch.cat([part, part]))
            beside = twice(torch.cat([images, 1 - images]))[: len(images)].detach()
        flat = gradient.flatten(1)
        finite = torch.isfinite(flat).all(dim=1)
        unstable = _differ(again, first, repeat_tolerance)
        raised = {
            "zero-gradient": finite & (flat == 0).all(dim=1),
            "non-finite-gradient": ~finite,
            "unstable-output": unstable,
            "batch-dependent": _differ(beside, again, batch_tolerance) & ~unstable,
            "probability-logits": are_probabilities(again),
        }
        codes += [tuple(code for code, rows in raised.items() if bool(rows[n])) for n in range(len(images))]
    return codes


def sanity_cost(classifier: Classifier) -> tuple[int, int]:
    """Return the forward and the backward passes of the sanity checks for each sample."""
    without, once = classifier.cost(gradient=False), classifier.cost(gradient=True)
    calls = SANITY_FORWARD - SANITY_BACKWARD
    return calls * without[0] + SANITY_BACKWARD * once[0], calls * without[1] + SANITY_BACKWARD * once[1]


def margin_gradient(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits, float32 [B, C], and the gradient of the margin of each image, float32 [B, 3, H, W].

    `images` is float32 [B, 3, H, W] in [0, 1] and `labels` is int64 [B]. The gradient is zero if the classifier does
    not have one.
    """
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = classifier(leaf)
        # If the output of a model is detached from its input, torch cannot compute a gradient. The gradient is
        # then reported as zero.
        if not logits.requires_grad:
            return logits.detach(), torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(margin(logits, labels, labels).sum(), leaf, allow_unused=True)
    return logits.detach(), torch.zeros_like(images) if gradient is None else gradient


def _differ(first: Tensor, second: Tensor, tolerance: float) -> Tensor:
    return (first - second).abs().amax(dim=1) > tolerance * second.abs().amax(dim=1)


def are_probabilities(logits: Tensor) -> Tensor:
    """Return for each row of logits, float32 [B, C], whether its values are probabilities, as bool [B]."""
    # Only probabilities raise the warning. Log-probabilities do not, because they are valid logits: their softmax gives
    # the probabilities.
    within = ((logits >= 0) & (logits <= 1)).all(dim=1)
    return within & ((logits.sum(dim=1) - 1).abs() < 1e-3)
