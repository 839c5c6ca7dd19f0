"""Untargeted and targeted APGD: PGD that halves its step size when the loss stalls (arXiv:2003.01690, algorithm 1).

The implementation follows pyautoattack 0.2.0 with three differences:

* A sample is finished at its first misclassified iterate.
* The first checkpoint compares the loss with the loss of the starting point, as in the paper. pyautoattack compares the
  loss with zero.
* All targets of a sample are chosen from one forward pass of the clean image.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.batching import Rows, put, run_in_batches, take
from robustbench_vlm.attacks.losses import LOSSES, loss_warnings, ranked_targets
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Ball, as_factor, ball_around
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_MOMENTUM = 0.75
_RISES = 0.75


@dataclass
class ApgdState:
    """The state of the current run of each sample.

    A checkpoint is a step at which the step size may be halved, as in the paper. Counters are int64 (B,), losses
    float32 (B,), and images float32 (B, 3, H, W) in [0, 1].
    """

    rows: Rows
    ball: Ball
    targets: Tensor
    """The target classes of each sample, int64 (B, T)."""
    runs: Tensor
    """The number of runs of each sample, int64 (B,). It is the number of the sample's targets times `restarts`."""
    run: Tensor
    """The index of the current run, int64 (B,)."""
    iteration: Tensor
    """The number of steps in the current run so far, int64 (B,)."""
    point: Tensor
    """The current iterate, (B, 3, H, W)."""
    previous: Tensor
    """The iterate before `point`, (B, 3, H, W)."""
    best: Tensor
    """The iterate with the highest loss in this run, (B, 3, H, W)."""
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
    strongest_loss: Tensor
    """The highest loss in all finished runs, (B,). If no iterate of a sample is misclassified, the adversarial image is
    the iterate with the highest loss.
    """


@dataclass(frozen=True, kw_only=True)
class Apgd:
    """APGD with `steps` steps in each run.

    If `targets` is 0, the attack is untargeted. If it is positive, it is the number of target classes, and the attack
    runs once for each of them. The targets are the wrong classes with the highest clean logits. `restarts` is the
    number of runs for each target, each from another random point. `skip` is the number of targets that an earlier
    stage attacked. These first targets are left out, which does not change the attack on the other targets.
    """

    threat: Threat
    loss: str
    steps: int = 100
    targets: int = 0
    restarts: int = 1
    skip: int = 0

    def start(self, model: CountedClassifier, rows: Rows) -> ApgdState:
        """Return the state at the start of the first run. The clean logits decide the targets."""
        targets, count = self.choose_targets(model, rows)
        plan = targets, count * self.restarts, torch.zeros_like(rows.labels) + self.skip * self.restarts
        nothing = torch.full_like(rows.images[:, 0, 0, 0], -float("inf"))
        return self._begin(rows, ball_around(self.threat, rows.images), plan, nothing)

    def choose_targets(self, model: CountedClassifier, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the target classes, int64 (B, T), and the number of targets of each sample, int64 (B,)."""
        if not self.targets:
            return rows.labels[:, None], torch.ones_like(rows.labels)
        return ranked_targets(model.logits(rows.images), rows.labels, self.targets)

    def step(self, model: CountedClassifier, state: ApgdState) -> ApgdState:
        """Classify every iterate and take one step. If the loss of a sample stalls, halve the sample's step size."""
        targets = state.targets.gather(1, state.run[:, None] // self.restarts).squeeze(1)
        loss, labels = LOSSES[self.loss], state.rows.labels
        logits, losses, gradient = model.gradient(state.point, lambda outputs: loss(outputs, labels, targets))
        broken = model.misclassified(state.point, logits, labels)
        if bool(broken.any()):
            state.rows.adversarial[broken] = state.point[broken]
            state.rows.finished |= broken
        self._record(state, losses, gradient)
        gradient = self._check(state, gradient)
        self._move(state, gradient)
        return self._next_run(state)

    def _begin(self, rows: Rows, ball: Ball, plan: tuple[Tensor, Tensor, Tensor], strongest_loss: Tensor) -> ApgdState:
        targets, runs, run = plan
        point = ball.clip(rows.images + float(self.threat.eps) * ball.boundary(rows.keys, run, rows.images))
        ones = torch.ones_like(point[:, 0, 0, 0])
        zeros = torch.zeros_like(rows.labels)
        return ApgdState(
            rows=rows,
            ball=ball,
            targets=targets,
            runs=runs,
            run=run,
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
            strongest_loss=strongest_loss,
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

    def _next_run(self, state: ApgdState) -> ApgdState:
        over = (state.iteration > self.steps) & ~state.rows.finished
        if not bool(over.any()):
            return state
        stronger = over & (state.best_loss > state.strongest_loss)
        state.rows.adversarial[stronger] = state.best[stronger]
        state.strongest_loss = torch.where(stronger, state.best_loss, state.strongest_loss)
        run = state.run + 1
        state.rows.finished |= over & (run == state.runs)
        index = (over & ~state.rows.finished).nonzero().squeeze(1)
        kept = take(state, index)
        plan = kept.targets, kept.runs, run[index]
        return put(state, index, self._begin(kept.rows, kept.ball, plan, kept.strongest_loss))


def apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD. The parameters are the fields of `Apgd`."""
    method = Apgd(threat=batch.threat, **parameters)
    # All classes except the label can be targets. If an earlier stage attacked all of them, the sample is left out.
    index = (batch.num_classes - 1 > method.skip).nonzero().squeeze(1)
    if len(index) == len(batch.labels):
        outcome = run_in_batches(method, classifier, batch, batch_size=batch_size)
    else:
        some = run_in_batches(method, classifier.select(index), batch.at(index), batch_size=batch_size)
        outcome = some.spread(index, batch)
    return replace(outcome, warnings=outcome.warnings | loss_warnings(method.loss, batch.num_classes))


def apgd_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs APGD. The parameters are the fields of `Apgd`."""
    return Stage(name, "apgd", f"{__name__}:apgd", parameters, version=1, calls=calls_per_target, mixes_datasets=True)
