"""Untargeted and targeted APGD: PGD that halves its step size when the loss stalls (arXiv:2003.01690, algorithm 1).

The implementation follows pyautoattack 0.2.0 with three differences:

* A sample is finished at its first misclassified iterate.
* The first checkpoint compares the loss with the loss of the starting point, as in the paper. pyautoattack compares the
  loss with zero.
* All targets of a sample are chosen from one forward pass of the clean image.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows, join, run_in_batches
from robustbench_vlm.attacks.losses import LOSSES, loss_warnings, ranked_targets
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Ball, as_factor, ball_around
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_MOMENTUM = 0.75
_RISES = 0.75
_HEAD_START = 4
"""The next run of a sample may start in a free place of the batch after 1/4 of the steps of the run before it."""


@dataclass
class ApgdState:
    """The state of each run in the batch.

    A checkpoint is a step at which the step size may be halved, as in the paper. Counters are int64 (B,), losses
    float32 (B,), and images float32 (B, 3, H, W) in [0, 1].
    """

    rows: Rows
    ball: Ball
    target: Tensor
    """The target class of each run, int64 (B,). Untargeted losses ignore it."""
    iteration: Tensor
    """The number of steps so far, int64 (B,)."""
    point: Tensor
    """The current iterate, (B, 3, H, W)."""
    previous: Tensor
    """The iterate before `point`, (B, 3, H, W)."""
    best: Tensor
    """The iterate with the highest loss, (B, 3, H, W)."""
    best_gradient: Tensor
    """The gradient of the loss at `best`, float32 (B, 3, H, W)."""
    best_loss: Tensor
    """The loss at `best`, (B,)."""
    last_loss: Tensor
    """The loss of the last iterate, (B,)."""
    checked_loss: Tensor
    """The value of `best_loss` at the last checkpoint, (B,)."""
    step_size: Tensor
    """Length of a step in the norm of the threat, float32 (B,)."""
    window: Tensor
    """The number of steps from the last checkpoint to the next, int64 (B,)."""
    since_check: Tensor
    """The number of steps since the last checkpoint, int64 (B,)."""
    rises: Tensor
    """The number of steps since the last checkpoint that increased the loss, int64 (B,)."""
    reduced: Tensor
    """True if the last checkpoint halved the step size, bool (B,)."""


@dataclass(frozen=True)
class Targets:
    """The target classes of N samples."""

    classes: Tensor
    """The target classes of each sample, int64 (N, T)."""
    count: Tensor
    """The number of targets of each sample, int64 (N,). The remaining values in its row of `classes` are not used."""
    forward: Tensor
    """Forward passes that chose the targets of each sample, int64 (N,)."""
    backward: Tensor
    """Backward passes that chose the targets of each sample, int64 (N,)."""


@dataclass(frozen=True, kw_only=True)
class Apgd:
    """APGD with `steps` steps in each run.

    If `targets` is 0, the attack is untargeted. If it is positive, it is the number of target classes, and the attack
    runs once for each of them. The targets are the wrong classes with the highest clean logits. `restarts` is the
    number of runs for each target, each from another random point. `skip` is the number of targets that an earlier
    stage attacked. These first targets are left out, which does not change the attack on the other targets.

    If no iterate of a sample is misclassified, the adversarial image is the iterate with the highest loss.
    """

    threat: Threat
    loss: str
    steps: int = 100
    targets: int = 0
    restarts: int = 1
    skip: int = 0
    classes: Tensor | None = None
    """The target classes of each sample of the batch, int64 (N, T). `run_apgd` sets this field."""

    def start(self, model: CountedClassifier, rows: Rows) -> ApgdState:
        """Return the state at the random starting point of each run."""
        assert self.classes is not None, "run_apgd chooses the targets"
        run = rows.run + self.skip * self.restarts
        target = self.classes[rows.index, run // self.restarts]
        return self._begin(rows, ball_around(self.threat, rows.images), target, run)

    def choose_targets(self, model: CountedClassifier, batch: Batch) -> Targets:
        """Return the targets of each sample. The clean logits decide them."""
        zeros = torch.zeros_like(batch.labels)
        if not self.targets:
            return Targets(batch.labels[:, None], zeros + 1, zeros, zeros)
        classes, count = ranked_targets(model.logits(batch.images), batch.labels, self.targets)
        return Targets(classes, count, zeros + model.forward, zeros + model.backward)

    def step(self, model: CountedClassifier, state: ApgdState) -> ApgdState:
        """Classify every iterate and take one step. If the loss of a sample stalls, halve the sample's step size."""
        loss, rows = LOSSES[self.loss], state.rows
        logits, losses, gradient = model.gradient(state.point, lambda outputs: loss(outputs, rows.labels, state.target))
        rows.succeeded = rows.finished = model.misclassified(state.point, logits, rows.labels)
        if bool(rows.succeeded.any()):
            rows.adversarial[rows.succeeded] = state.point[rows.succeeded]
        self._record(state, losses, gradient)
        gradient = self._check(state, gradient)
        self._move(state, gradient)
        return self._finish(state)

    def _begin(self, rows: Rows, ball: Ball, target: Tensor, run: Tensor) -> ApgdState:
        point = ball.clip(rows.images + float(self.threat.eps) * ball.boundary(rows.keys, run, rows.images))
        ones = torch.ones_like(point[:, 0, 0, 0])
        zeros = torch.zeros_like(rows.labels)
        return ApgdState(
            rows=rows,
            ball=ball,
            target=target,
            iteration=zeros,
            point=point,
            previous=point.clone(),
            best=point.clone(),
            best_gradient=torch.zeros_like(point),
            best_loss=-float("inf") * ones,
            last_loss=float("inf") * ones,
            checked_loss=float("inf") * ones,
            step_size=2 * float(self.threat.eps) * ones,
            window=zeros + max(int(0.22 * self.steps), 1),
            since_check=zeros.clone(),
            rises=zeros.clone(),
            reduced=torch.ones_like(zeros, dtype=torch.bool),
        )

    def _record(self, state: ApgdState, losses: Tensor, gradient: Tensor) -> None:
        first = state.iteration == 0
        improved = losses > state.best_loss
        better = as_factor(improved)
        state.best = torch.where(better, state.point, state.best)
        state.best_gradient = torch.where(better, gradient, state.best_gradient)
        state.best_loss = torch.where(improved, losses, state.best_loss)
        state.checked_loss = torch.where(first, losses, state.checked_loss)
        state.rises += losses > state.last_loss
        state.last_loss = losses
        state.since_check += ~first

    def _check(self, state: ApgdState, gradient: Tensor) -> Tensor:
        due = state.since_check == state.window
        if not bool(due.any()):
            return gradient
        oscillating = state.rises <= _RISES * state.window
        stalled = ~state.reduced & (state.checked_loss >= state.best_loss)
        halve = due & (oscillating | stalled)
        state.step_size = torch.where(halve, state.step_size / 2, state.step_size)
        state.point = torch.where(as_factor(halve), state.best, state.point)
        state.reduced = torch.where(due, halve, state.reduced)
        state.checked_loss = torch.where(due, state.best_loss, state.checked_loss)
        shorter = (state.window - max(int(0.03 * self.steps), 1)).clamp_min(max(int(0.06 * self.steps), 1))
        state.window = torch.where(due, shorter, state.window)
        state.since_check = state.since_check.masked_fill(due, 0)
        state.rises = state.rises.masked_fill(due, 0)
        return torch.where(as_factor(halve), state.best_gradient, gradient)

    def _move(self, state: ApgdState, gradient: Tensor) -> None:
        share = as_factor(torch.where(state.iteration > 0, _MOMENTUM, 1.0).to(gradient.dtype))
        step = torch.addcmul(state.point, state.ball.direction(gradient), as_factor(state.step_size))
        # This is the momentum of the paper. Let x be the current point, z the projected point after the step, and
        # `share` the weight of the step. The new point is x + share * (z - x) + (1 - share) * (x - previous).
        mirrored = torch.lerp(state.previous, state.point, 2.0)
        moved = state.ball.clip(mirrored.lerp_(state.ball.clip(step), share))
        state.previous, state.point = state.point, moved
        state.iteration = state.iteration + 1

    def _finish(self, state: ApgdState) -> ApgdState:
        rows, over = state.rows, state.iteration > self.steps
        if bool(over.any()):
            stronger = over & ~rows.succeeded & (state.best_loss > rows.score)
            rows.adversarial[stronger] = state.best[stronger]
            rows.score = torch.where(stronger, state.best_loss, rows.score)
            rows.finished = rows.finished | over
        return state


def apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD. The parameters are the fields of `Apgd`."""
    method = Apgd(threat=batch.threat, **parameters)
    # All classes except the label can be targets. If an earlier stage attacked all of them, the sample is left out.
    index = (batch.num_classes - 1 > method.skip).nonzero().squeeze(1)
    if len(index) == len(batch.labels):
        outcome = run_apgd(method, classifier, batch, batch_size=batch_size)
    else:
        some = run_apgd(method, classifier.select(index), batch.at(index), batch_size=batch_size)
        outcome = some.spread(index, batch)
    return replace(outcome, warnings=outcome.warnings | loss_warnings(method.loss, batch.num_classes))


def run_apgd(method: Apgd, classifier: Classifier, batch: Batch, *, batch_size: int) -> Outcome:
    """Choose the targets of every sample of a batch, and attack all samples with `method`."""
    if not len(batch.labels):
        return Outcome(batch.images, batch.labels, batch.labels)
    places = torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size)
    parts = [method.choose_targets(CountedClassifier(classifier.select(part)), batch.at(part)) for part in places]
    targets = functools.reduce(join, parts)
    outcome = run_in_batches(
        replace(method, classes=targets.classes),
        classifier,
        batch,
        batch_size=batch_size,
        runs=(targets.count - method.skip) * method.restarts,
        head_start=method.steps // _HEAD_START,
    )
    forward, backward = outcome.forward + targets.forward, outcome.backward + targets.backward
    return replace(outcome, forward=forward, backward=backward)


def apgd_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs APGD. The parameters are the fields of `Apgd`."""
    return Stage(name, "apgd", f"{__name__}:apgd", parameters, version=1, calls=calls_per_target, mixes_datasets=True)
