"""Two attacks: uniform noise and signed gradient steps. Each stage declares its cost and its properties."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import zeros_like

from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage
from robustbench_vlm.attacks.projections import project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier


def noise(classifier: Classifier, batch: Batch, *, batch_size: int, spread: float) -> Outcome:
    """Return images with uniform noise of `spread` times eps; the model is not called."""
    drawn = randomness.uniform(batch.keys, zeros_like(batch.keys), batch.images.shape[1:]).to(batch.images)
    moved = batch.images + spread * float(batch.threat.eps) * (2 * drawn - 1)
    nothing = zeros_like(batch.labels)
    return Outcome(project(batch.threat, batch.images, moved), nothing, nothing)


def no_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of `noise`: no calls."""
    return 0, 0


def signed_steps(classifier: Classifier, batch: Batch, *, batch_size: int, queries: int, iterate: str) -> Outcome:
    """Return the last images after `queries` steps of size eps along the sign of the gradient."""
    images = batch.images
    for _ in range(queries):
        leaf = images.detach().requires_grad_()
        correct = classifier(leaf).gather(1, batch.labels[:, None])
        (gradient,) = torch.autograd.grad(correct.sum(), leaf)
        images = project(batch.threat, batch.images, images - float(batch.threat.eps) * gradient.sign())
    passes = torch.full_like(batch.labels, queries)
    return Outcome(images, passes, passes)


def one_gradient_per_query(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of `signed_steps`: one call with a gradient per step."""
    return 0, int(parameters["queries"])


NOISE = Attack(
    "noise",
    (
        Stage(
            "noise",
            "sample-noise",
            "sample_plugin.attacks:noise",
            {"spread": 1.0},
            calls=no_calls,
            gradient_free=True,
        ),
    ),
    "uniform noise",
)
SIGNED_STEPS = Attack(
    "signed-steps",
    (
        Stage(
            "signed-steps",
            "sample-signed-steps",
            "sample_plugin.attacks:signed_steps",
            {"queries": 3, "iterate": "final"},
            calls=one_gradient_per_query,
        ),
    ),
    "signed gradient steps",
)
