"""FGSM (arXiv:1412.6572), PGD (arXiv:1706.06083) and the margin form of C&W's attack as PGD (arXiv:1608.04644)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Logits, Outcome, Stage
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import LOSSES, loss_notes
from robustbench_vlm.attacks.model import Oracle
from robustbench_vlm.attacks.projections import Ball, as_factor, ball_around
from robustbench_vlm.core.threat import Threat


@dataclass
class PgdState:
    """Where each row's walk stands."""

    rows: Rows
    ball: Ball
    point: Tensor
    iteration: Tensor
    best_loss: Tensor


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """Projected gradient ascent.

    `step_size` is a fraction of the pixel range such as "1/255"; without it, `relative_step` times eps. `iterate` says
    which image counts: the "final" iterate, as papers report it, or the "best", where a sample leaves once broken.
    """

    threat: Threat
    steps: int
    loss: str = "ce"
    iterate: Literal["final", "best"] = "best"
    random_start: bool = True
    relative_step: float = 0.25
    step_size: str | None = None
    mean_over: int = 1
    """Divides the loss, as its mean over so many samples would: in half precision small gradients become zero."""

    def __post_init__(self) -> None:
        assert self.steps >= 1 and self.iterate in ("final", "best")

    def start(self, oracle: Oracle, rows: Rows) -> PgdState:
        """Begin at the image, or at a random point of the ball."""
        ball = ball_around(self.threat, rows.images)
        point = rows.images
        if self.random_start:
            noise = ball.inside(rows.keys, torch.zeros_like(rows.keys), rows.images)
            point = ball.clip(point + float(self.threat.eps) * noise)
        lowest = torch.full_like(point[:, 0, 0, 0], -float("inf"))
        return PgdState(rows, ball, point, torch.zeros_like(rows.labels), lowest)

    def step(self, oracle: Oracle, state: PgdState) -> PgdState:
        """Evaluate every row's point and move on."""
        labels = state.rows.labels
        loss = LOSSES[self.loss]
        logits, losses, gradient = oracle.gradient(
            state.point, lambda outputs: loss(outputs, labels, labels) / self.mean_over
        )
        if self.iterate == "best":
            self._keep_best(state, oracle.broken(state.point, logits, labels), losses)
        size = float(Fraction(self.step_size)) if self.step_size else self.relative_step * float(self.threat.eps)
        state.point = state.ball.clip(state.point + size * state.ball.direction(gradient))
        state.iteration = state.iteration + 1
        if self.iterate == "final":
            state.rows.finished = state.iteration == self.steps
            state.rows.adversarial = state.point
        return state

    def _keep_best(self, state: PgdState, broken: Tensor, losses: Tensor) -> None:
        rows = state.rows
        better = broken | (losses > state.best_loss)
        state.best_loss = torch.where(better, losses, state.best_loss)
        rows.adversarial = torch.where(as_factor(better), state.point, rows.adversarial)
        rows.finished = broken | (state.iteration == self.steps)


def pgd_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of PGD for a sample that stays robust: a gradient at the start and one after each step."""
    return 1, int(parameters["steps"]) + 1


def pgd(logits: Logits, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Run PGD as a stage; the parameters are those of `Pgd`."""
    method = Pgd(threat=batch.threat, **parameters)
    outcome = run_in_batches(method, logits, batch, batch_size=batch_size)
    return replace(outcome, notes=outcome.notes | loss_notes(method.loss, batch.num_classes))


def pgd_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs PGD with these parameters."""
    return Stage(
        name,
        "pgd",
        f"{__name__}:pgd",
        parameters,
        version=1,
        calls=pgd_calls,
        takes_mixed=True,
    )
