"""PGD (arXiv:1706.06083), and two special cases: FGSM (arXiv:1412.6572) and PGD on the margin, named CW."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage, one_stage_attack
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import LOSSES, loss_warnings
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Ball, as_factor, ball_around
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat


@dataclass
class PgdState:
    """The state of the attack on each sample."""

    rows: Rows
    ball: Ball
    point: Tensor
    """The current iterate, float32 (B, 3, H, W) in [0, 1]."""
    iteration: Tensor
    """The number of steps so far, int64 (B,)."""
    best_loss: Tensor
    """The highest loss of all iterates so far, float32 (B,)."""


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """Projected gradient ascent.

    The step size is `step_size` if it is given. If not, it is `relative_step` times eps.
    """

    threat: Threat
    steps: int
    loss: str = "ce"
    """A name in `losses.LOSSES`."""
    iterate: Literal["final", "best"] = "best"
    """"final": the attack returns the last iterate, as in most papers. "best": the attack returns the first
    misclassified iterate. If no iterate is misclassified, it returns the iterate with the highest loss."""
    random_start: bool = True
    """If True, the attack starts at a random point of the ball. If False, it starts at the clean image."""
    relative_step: float = 0.25
    """The step size as a fraction of eps."""
    step_size: str | None = None
    """The step size as a fraction of the pixel range, such as "1/255"."""
    mean_over: int = 1
    """The number by which the loss is divided. Published code often takes the mean of the loss over a batch, which
    divides it by the batch size. In half precision, this division can turn small gradients into zero.
    """

    def __post_init__(self) -> None:
        assert self.steps >= 1 and self.iterate in ("final", "best")

    def start(self, model: CountedClassifier, rows: Rows) -> PgdState:
        """Return the state at the clean images, or at random points of the ball."""
        ball = ball_around(self.threat, rows.images)
        point = rows.images
        if self.random_start:
            noise = ball.inside(rows.keys, torch.zeros_like(rows.keys), rows.images)
            point = ball.clip(point + float(self.threat.eps) * noise)
        lowest = torch.full_like(point[:, 0, 0, 0], -float("inf"))
        return PgdState(rows, ball, point, torch.zeros_like(rows.labels), lowest)

    def step(self, model: CountedClassifier, state: PgdState) -> PgdState:
        """Classify every iterate and take one step."""
        labels = state.rows.labels
        loss = LOSSES[self.loss]
        logits, losses, gradient = model.gradient(
            state.point, lambda outputs: loss(outputs, labels, labels) / self.mean_over
        )
        if self.iterate == "best":
            self._keep_best(state, model.misclassified(state.point, logits, labels), losses)
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
    """Return the number of calls without and with a gradient for a sample that stays robust.

    PGD computes a gradient at its starting point and after each step.
    """
    return 1, int(parameters["steps"]) + 1


def pgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with PGD. The parameters are the fields of `Pgd`."""
    method = Pgd(threat=batch.threat, **parameters)
    outcome = run_in_batches(method, classifier, batch, batch_size=batch_size)
    return replace(outcome, warnings=outcome.warnings | loss_warnings(method.loss, batch.num_classes))


def pgd_stage(name: str, *, steps: int, loss: str, **parameters: Any) -> Stage:
    """Return a stage that runs PGD. The parameters are the fields of `Pgd`.

    A protocol may set `iterate`. It may also set `step_size` if there is more than one step, and `mean_over` if the
    loss is "ce".
    """
    adjustable = {"iterate": True, "step_size": steps > 1, "mean_over": loss == "ce"}
    return Stage(
        name,
        "pgd",
        f"{__name__}:pgd",
        {"steps": steps, "loss": loss, **parameters},
        version=1,
        calls=pgd_calls,
        mixes_datasets=True,
        adjustable=tuple(name for name, may_be_set in adjustable.items() if may_be_set),
    )


def pgd_attack(steps: int, *, iterate: Literal["final", "best"] = "best", step_size: str | None = None) -> Attack:
    """Return the attack "pgd-N": PGD on cross-entropy from a random start.

    The arguments `iterate` and `step_size` are the fields of `Pgd`. If `step_size` is None, the step size is eps / 4.
    """
    parameters: dict[str, Any] = {"iterate": iterate, "random_start": True}
    parameters |= {"step_size": step_size} if step_size else {"relative_step": 0.25}
    kept = "all iterates are tested" if iterate == "best" else "only the final iterate is tested"
    return one_stage_attack(
        pgd_stage(f"pgd-{steps}", steps=steps, loss="ce", **parameters),
        f"PGD with {steps} steps on the cross-entropy; {kept}",
        paper="arXiv:1706.06083",
        strength=steps,
    )


def pgd_named(steps: str) -> Attack:
    """Return the attack "pgd-N" for the text `steps`. Raises UserError if it is not a whole number from 1 to 99999."""
    if not re.fullmatch(r"[1-9]\d{0,4}", steps):
        raise UserError(f"unknown attack 'pgd-{steps}': give a number of steps from 1 to 99999, for example pgd-20")
    return pgd_attack(int(steps))


FGSM = one_stage_attack(
    pgd_stage("fgsm", steps=1, loss="ce", iterate="final", random_start=False, relative_step=1.0),
    "one step of size eps along the sign of the gradient",
    paper="arXiv:1412.6572",
    strength=0,
)
PGD_10, PGD_20, PGD_50, PGD_100 = (pgd_attack(steps) for steps in (10, 20, 50, 100))
CW = one_stage_attack(
    pgd_stage("cw", steps=100, loss="margin", iterate="best", random_start=True, relative_step=0.25),
    "PGD with 100 steps on the margin of the logits; robustness papers call this attack CW",
    paper="arXiv:1608.04644",
    norms=("Linf",),
)
