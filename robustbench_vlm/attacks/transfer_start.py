"""APGD that starts at an adversarial image of the model without its defense.

A defense may hide the gradients near the clean image only. The start is the last iterate of PGD on the margin of the
model without the defense, from a random point of the ball. Later restarts start at random points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import Apgd, ApgdState, run_apgd
from robustbench_vlm.attacks.base import Batch, GradientMode, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows
from robustbench_vlm.attacks.losses import LOSSES, loss_warnings
from robustbench_vlm.attacks.model import AdaptiveClassifier, CountedClassifier, SurrogateClassifier, with_gradient
from robustbench_vlm.attacks.projections import as_factor, ball_around
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier

START_STEPS = 20
"""The number of steps that find the starting point."""
_STEP = 0.25
_TRANSFER = GradientMode("transfer", "transfer")


@dataclass(frozen=True, kw_only=True)
class TransferStartApgd(Apgd):
    """APGD whose first run starts at an image that `undefended` misclassifies."""

    undefended: Classifier

    def start(self, model: CountedClassifier, rows: Rows) -> ApgdState:
        """Return the state at the start of each run. Only the first run of a sample starts at a transferred image."""
        state, first = super().start(model, rows), rows.run == 0
        if not bool(first.any()):
            return state
        counted = CountedClassifier(self.undefended.select(rows.index))
        point = torch.where(as_factor(first), self._transferred(counted, rows), state.point)
        rows.forward += first * counted.forward
        rows.backward += first * counted.backward
        return replace(state, point=point, previous=point.clone(), best=point.clone())

    def _transferred(self, model: CountedClassifier, rows: Rows) -> Tensor:
        ball, eps = ball_around(self.threat, rows.images), float(self.threat.eps)
        keys = randomness.derive(rows.keys, "transfer start")
        point = ball.clip(rows.images + eps * ball.inside(keys, torch.zeros_like(keys), rows.images))
        for _ in range(START_STEPS):
            *_, gradient = model.gradient(point, lambda logits: LOSSES["margin"](logits, rows.labels, rows.labels))
            point = ball.clip(point + _STEP * eps * ball.direction(gradient))
        return point


def transfer_start_apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD from transferred images. The parameters are the fields of `Apgd`.

    Raises UserError if the attacked model has neither a test-time defense nor a surrogate.
    """
    attacked = classifier.surrogate if isinstance(classifier, SurrogateClassifier) else classifier
    is_transfer = attacked is not classifier and not isinstance(attacked, AdaptiveClassifier)
    pair = classifier if is_transfer else with_gradient(attacked, _TRANSFER)
    assert isinstance(pair, SurrogateClassifier)
    method = TransferStartApgd(threat=batch.threat, undefended=pair.surrogate, **parameters)
    outcome = run_apgd(method, classifier, batch, batch_size=batch_size)
    return replace(outcome, warnings=outcome.warnings | loss_warnings(method.loss, batch.num_classes))


def transfer_start_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust.

    The calls of the model without its defense are counted as calls of the attacked model, which costs at least as much.
    """
    without, with_gradients = calls_per_target(parameters, num_classes)
    return without, with_gradients + START_STEPS


TRANSFER_START_STAGE = Stage(
    "apgd-transfer-start",
    "apgd-transfer-start",
    f"{__name__}:transfer_start_apgd",
    {"loss": "margin", "steps": 100, "targets": 0, "restarts": 1},
    calls=transfer_start_calls,
    mixes_datasets=True,
)
