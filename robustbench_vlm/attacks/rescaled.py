"""APGD on rescaled logits: the loss does not depend on the model's logit scale.

The logits of each sample are divided by the difference of the two largest logits of its clean image. MIFPE
(Yu and Xu, CVPR 2023, "Efficient Loss Function by Minimizing the Detrimental Effect of Floating-point Errors on
Gradient-based Attacks") divides by this difference at every iterate. Here the divisor is fixed, so that APGD can
compare the losses of its iterates. At CLIP's logit scale of 100, cross-entropy has weight on nearly one class only.
After the division, it has weight on all classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from robustbench_vlm.attacks.apgd import apgd
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target, one_stage_attack
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import ScaledClassifier, logits_in_batches, with_surrogate
from robustbench_vlm.core.classifier_interface import Classifier


def rescaled_apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD on rescaled logits. The parameters are the fields of `Apgd`."""
    logits = logits_in_batches(classifier, batch.images, batch_size)
    difference = -margin(logits, batch.labels, batch.labels)
    # The attacked classifier may be a surrogate that misclassifies the clean image. Its difference is then negative.
    factor = 1 / difference.abs().clamp_min(torch.finfo(difference.dtype).tiny)
    scaled = with_surrogate(classifier, lambda attacked: ScaledClassifier(attacked, factor))
    outcome = apgd(scaled, batch, batch_size=batch_size, **parameters)
    forward, backward = classifier.cost(gradient=False)
    return replace(outcome, forward=outcome.forward + forward, backward=outcome.backward + backward)


def rescaled_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust."""
    return calls_per_target(parameters, num_classes)


RESCALED_STAGE = Stage(
    "apgd-rescaled",
    "apgd-rescaled",
    f"{__name__}:rescaled_apgd",
    {"loss": "ce", "steps": 100, "targets": 0, "restarts": 1},
    calls=rescaled_calls,
    mixes_datasets=True,
)
APGD_RESCALED = one_stage_attack(
    RESCALED_STAGE, "APGD, 100 steps on the cross-entropy of rescaled logits", paper="arXiv:2003.01690"
)
