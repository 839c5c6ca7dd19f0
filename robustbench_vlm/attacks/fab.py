"""FAB, targeted: steps onto linearised decision boundaries, pulled towards the image (arXiv:1907.02044, algorithm 1).

Follows pyautoattack 0.2.0, except: a sample leaves at its first misclassified point within eps; the closest point of all
targets is kept; the point pulled back is looked at too, since its gradient pass classifies it anyway; the projection
needs no sorting (`hyperplane`).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.balls import as_factor
from robustbench_vlm.attacks.hyperplane import Hyperplanes
from robustbench_vlm.attacks.losses import ranked_targets, targeted_margin
from robustbench_vlm.attacks.oracle import Oracle
from robustbench_vlm.attacks.slots import Rows, run_in_slots
from robustbench_vlm.attacks.stage import Batch, Logits, Outcome
from robustbench_vlm.threats import Threat, distance


@dataclass
class FabState:
    """Where each row's walk stands, and how far its closest misclassified point is from the image."""

    rows: Rows
    targets: Tensor
    run: Tensor
    iteration: Tensor
    point: Tensor
    closest: Tensor


@dataclass(frozen=True, kw_only=True)
class Fab:
    """Targeted FAB with `steps` steps for each of the likeliest other classes, at most `targets` of them.

    `overshoot` is the paper's eta, `backward` its beta, `pull` its alpha_max.
    """

    threat: Threat
    steps: int = 100
    targets: int = 9
    overshoot: float = 1.05
    backward: float = 0.9
    pull: float = 0.1

    def start(self, oracle: Oracle, rows: Rows) -> FabState:
        """Begin at the image; the targets come from the clean logits."""
        targets = ranked_targets(oracle.logits(rows.images), rows.labels, self.targets)
        zeros = torch.zeros_like(rows.labels)
        nothing = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        return FabState(rows, targets, zeros, zeros.clone(), rows.images.clone(), nothing)

    def step(self, oracle: Oracle, state: FabState) -> FabState:
        """Linearise at every row's point, step, and pull back what is misclassified then."""
        rows = state.rows
        target = state.targets.gather(1, state.run[:, None]).squeeze(1)
        logits, gap, gradient = oracle.gradient(
            state.point, partial(targeted_margin, labels=rows.labels, targets=target)
        )
        self._record(state, logits.argmax(dim=1) != rows.labels)
        state.point = self._moved(state, gap, gradient)
        wrong = oracle.logits(state.point).argmax(dim=1) != rows.labels
        self._record(state, wrong)
        pulled = torch.lerp(rows.images, state.point, self.backward)
        state.point = torch.where(as_factor(wrong), pulled, state.point)
        self._next_iteration(state)
        return state

    def _record(self, state: FabState, wrong: Tensor) -> None:
        if not bool(wrong.any()):
            return
        found = distance(self.threat, state.rows.images, state.point)
        closer = wrong & (found < state.closest)
        state.closest = torch.where(closer, found, state.closest)
        state.rows.adversarial = torch.where(as_factor(closer), state.point, state.rows.adversarial)
        state.rows.finished |= state.closest <= float(self.threat.eps)

    def _moved(self, state: FabState, gap: Tensor, gradient: Tensor) -> Tensor:
        images, points, normal = state.rows.images.flatten(1), state.point.flatten(1), gradient.flatten(1)
        # The step is the same at every scale of the logits, but squares of a tiny gradient would be zero in float32.
        scale = normal.abs().amax(dim=1).clamp_min(torch.finfo(normal.dtype).tiny)
        normal, gap = normal / scale[:, None], gap / scale
        planes = Hyperplanes.of(normal, self.threat.norm)
        from_point = planes.shortest_step(points, gap)
        from_image = planes.shortest_step(images, gap + (normal * (images - points)).sum(dim=1))
        order = float("inf") if self.threat.norm == "Linf" else 2
        length, image_length = (step.norm(order, dim=1).clamp_min(1e-8) for step in (from_point, from_image))
        share = (length / (length + image_length)).clamp(0, self.pull)[:, None]
        moved = torch.lerp(points + self.overshoot * from_point, images + self.overshoot * from_image, share)
        return moved.clamp_(0, 1).view_as(state.point)

    def _next_iteration(self, state: FabState) -> None:
        state.iteration = state.iteration + 1
        over = state.iteration == self.steps
        if not bool(over.any()):
            return
        state.rows.finished |= over & (state.run + 1 == state.targets.shape[1])
        state.run = (state.run + over).clamp_max(state.targets.shape[1] - 1)
        state.iteration = state.iteration.masked_fill(over, 0)
        state.point = torch.where(as_factor(over), state.rows.images, state.point)


def fab(logits: Logits, batch: Batch, *, slots: int, **parameters: Any) -> Outcome:
    """Run targeted FAB as a stage; the parameters are those of `Fab`."""
    return run_in_slots(Fab(threat=batch.threat, **parameters), logits, batch, slots=slots)
