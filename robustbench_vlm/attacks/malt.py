"""MALT: targeted APGD on the classes whose linearised decision boundaries are nearest (arXiv:2407.02240).

The attack follows the released code, odeliamel/MALT 1bc8230, targeting.py and demo.py. The `candidates` classes with
the highest clean logits are ranked by (z_label - z_c) / |grad(z_c - z_label)|, from low to high. The norm is the dual
norm of the threat: L1 for Linf, and L2 for L2. For a linear model, this number is the distance to the decision
boundary. APGD on the targeted DLR loss then attacks the first `targets` classes. There are two differences from the
released code:

* A class with a zero gradient comes last. The released code puts it first.
* A sample is finished at its first misclassified iterate, in any class. The released code asks for the target class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import Apgd, Targets, run_apgd
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target, one_stage_attack
from robustbench_vlm.attacks.losses import ranked_targets, targeted_margin
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.core.classifier_interface import Classifier


@dataclass(frozen=True, kw_only=True)
class Malt(Apgd):
    """Targeted APGD, with targets that MALT chooses among the `candidates` classes with the highest clean logits."""

    loss: str = "targeted-dlr"
    targets: int = 9
    candidates: int = 100

    def choose_targets(self, model: CountedClassifier, batch: Batch) -> Targets:
        """Return the targets of each sample in the order of MALT. Each candidate costs one call with a gradient."""
        classes, count = ranked_targets(model.logits(batch.images), batch.labels, self.candidates)
        spent, columns = (model.forward, model.backward), torch.arange(classes.shape[1], device=classes.device)
        # A sample of a dataset with fewer classes repeats its first candidate, whose rank does not change.
        missing = columns >= count[:, None]
        classes = torch.where(missing, classes[:, :1], classes)
        distances = torch.stack([self._distance(model, batch, classes[:, n]) for n in columns.tolist()], dim=1)
        order = distances.masked_fill(missing, float("inf")).argsort(dim=1, stable=True)[:, : self.targets]
        return Targets(
            classes=classes.gather(1, order),
            count=count.clamp_max(order.shape[1]),
            # The passes of repeated candidates do not count.
            forward=spent[0] + count * ((model.forward - spent[0]) // len(columns)),
            backward=spent[1] + count * ((model.backward - spent[1]) // len(columns)),
        )

    def _distance(self, model: CountedClassifier, batch: Batch, target: Tensor) -> Tensor:
        """Return the distance of each image to its linearised boundary with the class `target`, float32 (B,)."""
        _, gap, gradient = model.gradient(batch.images, lambda outputs: targeted_margin(outputs, batch.labels, target))
        slope: Tensor = gradient.flatten(1).norm(1 if self.threat.norm == "Linf" else 2, dim=1)
        return -gap / slope


def malt_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust."""
    without, of_runs = calls_per_target(parameters, num_classes)
    return without, of_runs + min(int(parameters["candidates"]), num_classes - 1)


def malt(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with MALT. The parameters are the fields of `Malt`."""
    return run_apgd(Malt(threat=batch.threat, **parameters), classifier, batch, batch_size=batch_size)


MALT_STAGE = Stage(
    "malt",
    "malt",
    f"{__name__}:malt",
    {"loss": "targeted-dlr", "steps": 100, "targets": 9, "candidates": 100},
    calls=malt_calls,
    mixes_datasets=True,
)
MALT = one_stage_attack(
    MALT_STAGE, "targeted APGD on the 9 classes with the nearest linearised boundaries", paper="arXiv:2407.02240"
)
