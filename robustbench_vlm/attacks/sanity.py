"""Probes: a few passes on the clean samples that show a model for which no attack's verdict can be believed."""

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Logits
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import logits_of, passes_of

PROBE_FORWARD, PROBE_BACKWARD = 4, 1
"""Calls that the probes spend on each sample, and those of them that ask for a gradient."""
PROBED = ("zero-gradient", "non-finite-gradient", "unstable-output", "batch-dependent", "probability-logits")
"""The codes that `probe` may raise."""
UNSTABLE = 1e-5
"""Logits of two equal calls may differ by this part of the largest logit; GPU kernels add in any order."""
MATES = 1e-3
"""Logits may differ by this part of the largest logit when a sample has other batch mates."""


def probe(
    logits: Logits, batch: Batch, *, batch_size: int, mates: float = MATES, unstable: float = UNSTABLE
) -> list[tuple[str, ...]]:
    """Return the codes of the gates that each sample of a batch raises, in the order of the samples.

    Looks at the gradient of the margin, at a second equal call, at other batch mates, and at the range of the logits.
    `mates` is the part of the largest logit by which other mates may change a logit, `unstable` that by which a second
    call may.
    """
    codes: list[tuple[str, ...]] = []
    for part in torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size):
        images, own = batch.images[part], logits_of(logits, part)
        first, gradient = _margin_gradient(own, images, batch.labels[part])
        with torch.no_grad():
            again = own(images).detach()
            twice = logits_of(logits, torch.cat([part, part]))
            beside = twice(torch.cat([images, 1 - images]))[: len(images)].detach()
        flat = gradient.flatten(1)
        finite = torch.isfinite(flat).all(dim=1)
        raised = {
            "zero-gradient": finite & (flat == 0).all(dim=1),
            "non-finite-gradient": ~finite,
            "unstable-output": _differ(again, first, unstable),
            "batch-dependent": _differ(beside, again, mates) & ~_differ(again, first, unstable),
            "probability-logits": _probabilities(again),
        }
        codes += [tuple(code for code, rows in raised.items() if bool(rows[n])) for n in range(len(images))]
    return codes


def probe_passes(logits: Logits) -> tuple[int, int]:
    """Return the forward and backward passes that the probes spend on each sample."""
    without, once = passes_of(logits, gradient=False), passes_of(logits, gradient=True)
    calls = PROBE_FORWARD - PROBE_BACKWARD
    return calls * without[0] + PROBE_BACKWARD * once[0], calls * without[1] + PROBE_BACKWARD * once[1]


def _margin_gradient(logits: Logits, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        output = logits(leaf)
        if not output.requires_grad:  # the model cut the graph: nothing flows back at all
            return output.detach(), torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(margin(output, labels, labels).sum(), leaf, allow_unused=True)
    return output.detach(), torch.zeros_like(images) if gradient is None else gradient


def _differ(first: Tensor, second: Tensor, tolerance: float) -> Tensor:
    return (first - second).abs().amax(dim=1) > tolerance * second.abs().amax(dim=1)


def _probabilities(logits: Tensor) -> Tensor:
    # Log-probabilities are no fault: a softmax of them gives the same probabilities back.
    within = ((logits >= 0) & (logits <= 1)).all(dim=1)
    return within & ((logits.sum(dim=1) - 1).abs() < 1e-3)
