"""APGD that starts at clean images of samples of other classes, projected into the ball.

The gradient near the clean image may be masked. The projection of an image of another class is far from the clean
image, and in a direction in which the class changes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import Apgd, ApgdState, run_apgd
from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows
from robustbench_vlm.attacks.losses import loss_warnings
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import as_factor
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError

CANDIDATES = 64
"""The starting points are images of the first samples of a dataset, at most this many. They therefore do not depend on
the batch size."""
_STARTS = 5
"""The number of images that are kept for each sample. Later restarts start at random points."""


@dataclass(frozen=True, kw_only=True)
class OtherStartApgd(Apgd):
    """APGD. The first runs of a sample start at `other_images`."""

    other_images: Tensor
    """For each sample of the batch, images of other classes, float32 (B, R, 3, H, W) in [0, 1]."""

    def start(self, model: CountedClassifier, rows: Rows) -> ApgdState:
        """Return the state at the start of each run. Run number r of a sample starts at its image number r."""
        state, count = super().start(model, rows), self.other_images.shape[1]
        other = self.other_images[rows.index, rows.run.clamp_max(count - 1)]
        point = torch.where(as_factor(rows.run < count), state.ball.clip(other), state.point)
        return replace(state, point=point, previous=point.clone(), best=point.clone())


def needs_other_images(attack: Attack) -> bool:
    """Return whether a stage of the attack uses `Batch.other_images`."""
    return any(stage.needs_other_images for stage in attack.stages)


def with_other_images(batch: Batch, images: Tensor, labels: Tensor) -> Batch:
    """Return the batch with `other_images`: for each sample, the nearest images of other classes in the L2 norm.

    `images`, float32 (N, 3, H, W) in [0, 1], and `labels`, int64 (N,), are the candidates, of the dataset of the batch.
    Only the first `CANDIDATES` of them are used. If fewer than five candidates have another class, the clean image of
    the sample replaces the missing ones.
    """
    images, labels = images[:CANDIDATES], labels[:CANDIDATES]
    # The distances of a pair do not depend on the other images, so the batch size does not change the order.
    rows = [(images - image).flatten(1).double().norm(dim=1) for image in batch.images]
    distances = torch.stack(rows).masked_fill(labels == batch.labels[:, None], float("inf"))
    nearest = distances.argsort(dim=1, stable=True)[:, :_STARTS]
    is_known = distances.gather(1, nearest).isfinite()[..., None, None, None]
    return replace(batch, other_images=torch.where(is_known, images[nearest], batch.images[:, None]))


def other_start_apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD from images of other classes. The parameters are the fields of `Apgd`.

    Raises UserError if the batch does not have `other_images`.
    """
    if batch.other_images is None:
        raise UserError(
            "the algorithm 'apgd-other-start' needs images of other samples, but the batch has none: use `vlmbench"
            " run`, evaluate or attack, or call with_other_images of robustbench_vlm.attacks.other_sample_start first"
        )
    method = OtherStartApgd(threat=batch.threat, other_images=batch.other_images, **parameters)
    outcome = run_apgd(method, classifier, batch, batch_size=batch_size)
    return replace(outcome, warnings=outcome.warnings | loss_warnings(method.loss, batch.num_classes))


OTHER_START_STAGE = Stage(
    "apgd-other-start",
    "apgd-other-start",
    f"{__name__}:other_start_apgd",
    {"loss": "margin", "steps": 100, "targets": 0, "restarts": 1},
    calls=calls_per_target,
    mixes_datasets=True,
    needs_other_images=True,
)
