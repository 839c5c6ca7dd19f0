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

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import ranked_targets, targeted_margin
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Hyperplanes, as_factor
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat


@dataclass
class FabState:
    """The state of the current run of each sample."""

    rows: Rows
    targets: Tensor
    """The target classes of each sample, int64 (B, T)."""
    runs: Tensor
    """The number of targets of each sample, int64 (B,)."""
    run: Tensor
    """The index of the current target, int64 (B,)."""
    iteration: Tensor
    """The steps of the current run so far, int64 (B,)."""
    point: Tensor
    """The current iterate, float32 (B, 3, H, W) in [0, 1]."""
    closest: Tensor
    """The distance between the image and its closest misclassified iterate in the threat's norm, float32 (B,). It is
    infinite if no iterate was misclassified."""


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

    def start(self, model: CountedClassifier, rows: Rows) -> FabState:
        """Return the state at the clean images. The clean logits decide the targets."""
        targets, runs = ranked_targets(model.logits(rows.images), rows.labels, self.targets)
        zeros = torch.zeros_like(rows.labels)
        nothing = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        return FabState(rows, targets, runs, zeros, zeros.clone(), rows.images.clone(), nothing)

    def step(self, model: CountedClassifier, state: FabState) -> FabState:
        """Classify every iterate and linearise the model at it. Move misclassified iterates back, and take one step."""
        rows = state.rows
        target = state.targets.gather(1, state.run[:, None]).squeeze(1)
        logits, gap, gradient = model.gradient(
            state.point, lambda outputs: targeted_margin(outputs, rows.labels, target)
        )
        delta = (state.point - rows.images).flatten(1)
        wrong = model.misclassified(state.point, logits, rows.labels)
        self._record(state, wrong, delta)
        kept = torch.where(wrong, self.beta, 1.0).to(gap)
        state.point = self._moved(rows.images.flatten(1), delta, kept, (gap, gradient.flatten(1))).view_as(state.point)
        return self._next_iteration(state)

    def _record(self, state: FabState, wrong: Tensor, delta: Tensor) -> None:
        if not bool(wrong.any()):
            return
        found = self._length(delta.abs())
        closer = (wrong & (found < state.closest)).nonzero().squeeze(1)
        state.closest[closer] = found[closer]
        state.rows.adversarial[closer] = state.point[closer]
        state.rows.finished |= state.closest <= float(self.threat.eps)

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

    def _next_iteration(self, state: FabState) -> FabState:
        over = state.iteration == self.steps
        state.iteration = (state.iteration + 1).masked_fill_(over, 0)
        if bool(over.any()):
            last = state.run + 1 == state.runs
            state.rows.finished |= over & last
            state.run = state.run + (over & ~last)
            state.point = torch.where(as_factor(over), state.rows.images, state.point)
        return state


def fab(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with targeted FAB. The parameters are the fields of `Fab`."""
    return run_in_batches(Fab(threat=batch.threat, **parameters), classifier, batch, batch_size=batch_size)


def fab_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs targeted FAB. The parameters are the fields of `Fab`."""
    return Stage(name, "fab", f"{__name__}:fab", parameters, version=1, calls=calls_per_target, mixes_datasets=True)
