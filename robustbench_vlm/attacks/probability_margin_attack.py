"""Probability Margin Attack, PMA (arXiv:2411.15210): PGD with a cosine step size on margins of probabilities.

The attack follows the released code, OpenTAI/taiadv ae28cb7, taiadv/vision/white-box/attacks/PMA.py. Each restart has
two runs from random points of the ball. The first step of a run increases the probability of the label. The other steps
of the first half decrease this probability in the first run, and increase the largest other probability in the second
run. The second half increases the difference of the two. This order of losses is the Margin Decomposition of
arXiv:2006.13726. There are four differences from the released code:

* The losses are logarithms of the probabilities (`losses.probability_margin`). The steps have the same directions, but
  the gradients do not round to zero.
* The random numbers of a sample do not depend on the other samples.
* A sample is finished at its first misclassified iterate.
* The attack supports L2. The released code has only Linf.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage, one_stage_attack
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import cross_entropy, other_log_probability, probability_margin
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Ball, as_factor, ball_around
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_RUNS = 2
"""Runs in each restart."""


@dataclass
class PmaState:
    """The state of the current run of each sample."""

    rows: Rows
    ball: Ball
    point: Tensor
    """The current iterate, float32 (B, 3, H, W) in [0, 1]."""
    run: Tensor
    """The index of the current run, int64 (B,)."""
    iteration: Tensor
    """The number of steps in the current run so far, int64 (B,)."""
    best_loss: Tensor
    """The highest probability margin so far, as `losses.probability_margin`, float32 (B,)."""


@dataclass(frozen=True, kw_only=True)
class Pma:
    """PMA with `steps` steps in each of its 2 * `restarts` runs."""

    threat: Threat
    steps: int = 100
    restarts: int = 1

    def start(self, model: CountedClassifier, rows: Rows) -> PmaState:
        """Return the state at the start of the first run."""
        ball, zeros = ball_around(self.threat, rows.images), torch.zeros_like(rows.labels)
        lowest = torch.full_like(rows.images[:, 0, 0, 0], -float("inf"))
        return PmaState(rows, ball, self._random_points(ball, rows, zeros), zeros, zeros.clone(), lowest)

    def step(self, model: CountedClassifier, state: PmaState) -> PmaState:
        """Classify every iterate and take one step."""
        rows = state.rows
        logits, _, gradient = model.gradient(state.point, lambda outputs: self._losses(outputs, state))
        broken = model.misclassified(state.point, logits, rows.labels)
        self._keep_best(state, broken, probability_margin(logits, rows.labels, rows.labels))
        step = as_factor(self.step_sizes(state.iteration).to(gradient)) * state.ball.direction(gradient)
        state.point = state.ball.clip(state.point + step)
        over = state.iteration == self.steps
        state.iteration = (state.iteration + 1).masked_fill(over, 0)
        if bool(over.any()):
            state.run = state.run + over
            fresh = self._random_points(state.ball, rows, state.run)
            state.point = torch.where(as_factor(over), fresh, state.point)
            rows.finished |= state.run == _RUNS * self.restarts
        return state

    def step_sizes(self, iteration: Tensor) -> Tensor:
        """Return the step size in the norm of the threat, float64 (B,), for each iteration, int64 (B,).

        In each half of a run, the step size falls from twice the radius to zero, along a half period of the cosine.
        """
        half = self.steps / 2
        place = iteration.double() - 1 - half * (iteration > half)
        return float(self.threat.eps) * (1 + torch.cos(place / half * math.pi))

    def _losses(self, logits: Tensor, state: PmaState) -> Tensor:
        labels = state.rows.labels
        against_label = cross_entropy(logits, labels, labels)
        for_other = other_log_probability(logits, labels, labels)
        early = torch.where(state.run % _RUNS == 0, against_label, for_other)
        early = torch.where(state.iteration == 0, -against_label, early)
        return torch.where(state.iteration < self.steps / 2, early, probability_margin(logits, labels, labels))

    def _random_points(self, ball: Ball, rows: Rows, run: Tensor) -> Tensor:
        return ball.clip(rows.images + float(self.threat.eps) * ball.inside(rows.keys, run, rows.images))

    @staticmethod
    def _keep_best(state: PmaState, broken: Tensor, losses: Tensor) -> None:
        rows = state.rows
        better = broken | (losses > state.best_loss)
        state.best_loss = torch.where(better, losses, state.best_loss)
        rows.adversarial = torch.where(as_factor(better), state.point, rows.adversarial)
        rows.finished |= broken


def pma_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust."""
    return 0, (int(parameters["steps"]) + 1) * _RUNS * int(parameters["restarts"])


def pma(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with PMA. The parameters are the fields of `Pma`."""
    return run_in_batches(Pma(threat=batch.threat, **parameters), classifier, batch, batch_size=batch_size)


PMA_STAGE = Stage("pma", "pma", f"{__name__}:pma", {"steps": 100, "restarts": 1}, calls=pma_calls, mixes_datasets=True)
PMA = one_stage_attack(PMA_STAGE, "Probability Margin Attack, two runs of 100 steps", paper="arXiv:2411.15210")
