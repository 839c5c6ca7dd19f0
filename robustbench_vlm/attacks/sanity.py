"""Sanity checks: a few passes on the clean samples that show a model for which no attack's verdict can be trusted."""

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.core.classifier_interface import Classifier, ClassifierLike, as_classifier

SANITY_FORWARD, SANITY_BACKWARD = 4, 1
"""Calls that the sanity checks spend on each sample, and those of them that ask for a gradient."""
SANITY_CODES = ("zero-gradient", "non-finite-gradient", "unstable-output", "batch-dependent", "probability-logits")
"""The warning codes that `sanity_warnings` may return."""
REPEAT_TOLERANCE = 1e-5
"""Share of the largest logit by which logits of two equal calls may differ; GPU kernels add in any order."""
BATCH_TOLERANCE = 1e-3
"""Share of the largest logit by which logits may differ when the other images of the batch change."""


def sanity_warnings(
    model: ClassifierLike,
    batch: Batch,
    *,
    batch_size: int,
    batch_tolerance: float = BATCH_TOLERANCE,
    repeat_tolerance: float = REPEAT_TOLERANCE,
) -> list[tuple[str, ...]]:
    """Return the warning codes that each sample of a batch raises, in the order of the samples.

    Checks the gradient of the margin, a second equal call, a call with other images in the batch, and the range of the
    logits. The tolerances are shares of the largest logit.
    """
    classifier, codes = as_classifier(model), list[tuple[str, ...]]()
    for part in torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size):
        images, own = batch.images[part], classifier.select(part)
        first, gradient = _margin_gradient(own, images, batch.labels[part])
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
            "probability-logits": _are_probabilities(again),
        }
        codes += [tuple(code for code, rows in raised.items() if bool(rows[n])) for n in range(len(images))]
    return codes


def sanity_cost(classifier: Classifier) -> tuple[int, int]:
    """Return the forward and backward passes that the sanity checks spend on each sample."""
    without, once = classifier.cost(gradient=False), classifier.cost(gradient=True)
    calls = SANITY_FORWARD - SANITY_BACKWARD
    return calls * without[0] + SANITY_BACKWARD * once[0], calls * without[1] + SANITY_BACKWARD * once[1]


def _margin_gradient(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = classifier(leaf)
        if not logits.requires_grad:  # the model detached its output, and nothing flows back
            return logits.detach(), torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(margin(logits, labels, labels).sum(), leaf, allow_unused=True)
    return logits.detach(), torch.zeros_like(images) if gradient is None else gradient


def _differ(first: Tensor, second: Tensor, tolerance: float) -> Tensor:
    return (first - second).abs().amax(dim=1) > tolerance * second.abs().amax(dim=1)


def _are_probabilities(logits: Tensor) -> Tensor:
    # Log-probabilities are fine: a softmax of them gives the same probabilities again.
    within = ((logits >= 0) & (logits <= 1)).all(dim=1)
    return within & ((logits.sum(dim=1) - 1).abs() < 1e-3)
