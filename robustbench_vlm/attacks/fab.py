"""Targeted FAB: steps onto linearised decision boundaries, with a bias to the image (arXiv:1907.02044, algorithm 1).

Follows pyautoattack 0.2.0 with these differences:

* A sample is finished at its first misclassified point within eps.
* The attack keeps the misclassified point that is closest to the image over all targets.
* One forward pass is enough to classify a point and to linearise the model at this point. The official code first moves
  a misclassified point back towards the image and then classifies it again. This implementation needs half as many
  forward passes. On average, the found points are at least as close to the image. For single samples, they may be
  further away.
* The projection onto a hyperplane does not sort the pixels. It uses the secant method.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import ranked_targets, targeted_margin
from robustbench_vlm.attacks.model import CountedClassifier, logits_in_batches
from robustbench_vlm.attacks.projections import Hyperplanes
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_HEAD_START = 4
"""The next run of a sample may start in a free place of the batch after 1/4 of the steps of the run before it."""


@dataclass
class FabState:
    """The state of each run in the batch. A sample has one run per target class."""

    rows: Rows
    target: Tensor
    """The target class of each run, int64 (B,)."""
    iteration: Tensor
    """The steps of each run so far, int64 (B,)."""
    point: Tensor
    """The current iterate, float32 (B, 3, H, W) in [0, 1]."""
    closest: Tensor
    """The distance between the image and the run's closest misclassified iterate in the threat's norm, float32 (B,). It
    is infinite if no iterate was misclassified."""


@dataclass(frozen=True, kw_only=True)
class Fab:
    """Targeted FAB with `steps` steps towards each target class.

    The target classes are the `targets` classes with the highest clean logits, except the label. `eta` is the
    overshoot, `beta` the size of the backward step and `alpha_max` the largest bias towards the image, as in the paper.
    """

    threat: Threat
    steps: int = 100
    targets: int = 9
    eta: float = 1.05
    beta: float = 0.9
    alpha_max: float = 0.1
    classes: Tensor
    """The target classes of each sample of the batch, int64 (N, T)."""

    def start(self, model: CountedClassifier, rows: Rows) -> FabState:
        """Return the state at the clean images."""
        nothing = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        target = self.classes[rows.index, rows.run]
        return FabState(rows, target, torch.zeros_like(rows.labels), rows.images.clone(), nothing)

    def step(self, model: CountedClassifier, state: FabState) -> FabState:
        """Classify every iterate and linearise the model at it. Move misclassified iterates back, and take one step."""
        rows = state.rows
        logits, gap, gradient = model.gradient(
            state.point, lambda outputs: targeted_margin(outputs, rows.labels, state.target)
        )
        delta = (state.point - rows.images).flatten(1)
        wrong = model.misclassified(state.point, logits, rows.labels)
        self._record(state, wrong, delta)
        rows.finished = rows.succeeded | (state.iteration == self.steps)
        kept = torch.where(wrong, self.beta, 1.0).to(gap)
        state.point = self._moved(rows.images.flatten(1), delta, kept, (gap, gradient.flatten(1))).view_as(state.point)
        state.iteration = state.iteration + 1
        return state

    def _record(self, state: FabState, wrong: Tensor, delta: Tensor) -> None:
        if not bool(wrong.any()):
            return
        found = self._length(delta.abs())
        closer = (wrong & (found < state.closest)).nonzero().squeeze(1)
        state.closest[closer] = found[closer]
        state.rows.adversarial[closer] = state.point[closer]
        state.rows.score = -state.closest
        state.rows.succeeded = state.closest <= float(self.threat.eps)

    def _moved(self, images: Tensor, delta: Tensor, kept: Tensor, plane: tuple[Tensor, Tensor]) -> Tensor:
        # The current point is images + delta, (B, D). `plane` is the linearised decision boundary at this point: a gap
        # (B,) and a normal (B, D). The step starts at images + kept * delta, and `kept` is (B,). Misclassified points
        # have `kept` below 1, so they are first moved back towards the image.
        gap, normal = plane
        planes = Hyperplanes.of(normal, self.threat.norm)
        along = (normal * delta).sum(dim=1)
        points = torch.addcmul(images, delta, kept[:, None])
        sizes, side = planes.shortest_step(points, gap + (kept - 1) * along)
        image_sizes, image_side = planes.shortest_step(images, gap - along)
        length, image_length = self._length(sizes).clamp_min(1e-8), self._length(image_sizes).clamp_min(1e-8)
        share = (length / (length + image_length)).clamp_max(self.alpha_max)
        sizes *= (self.eta * (1 - share) * side)[:, None]
        sizes.addcmul_(image_sizes, (self.eta * share * image_side)[:, None])
        return points.lerp_(images, share[:, None]).addcmul_(planes.sign, sizes).clamp_(0, 1)

    def _length(self, sizes: Tensor) -> Tensor:
        return sizes.amax(dim=1) if self.threat.norm == "Linf" else sizes.norm(dim=1)


def fab(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with targeted FAB. The parameters are the fields of `Fab`."""
    logits, asked = logits_in_batches(classifier, batch.images, batch_size), classifier.cost(gradient=False)
    classes, runs = ranked_targets(logits, batch.labels, int(parameters["targets"]))
    method = Fab(threat=batch.threat, classes=classes, **parameters)
    head_start = method.steps // _HEAD_START
    outcome = run_in_batches(method, classifier, batch, batch_size=batch_size, runs=runs, head_start=head_start)
    return replace(outcome, forward=outcome.forward + asked[0], backward=outcome.backward + asked[1])


def fab_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs targeted FAB. The parameters are the fields of `Fab`."""
    return Stage(name, "fab", f"{__name__}:fab", parameters, version=1, calls=calls_per_target, mixes_datasets=True)
