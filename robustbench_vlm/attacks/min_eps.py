"""Search for the smallest radius at which each sample falls: FAB's distance, and a binary search with APGD.

FAB (arXiv:1907.02044) first minimises the size of the perturbation. The binary search then halves the interval between
the largest radius at which APGD failed and the distance of the closest adversarial example. Each run of APGD starts
from the closest adversarial example, projected into the smaller ball. A run without success does not prove that the
sample is robust, so the distance is an upper bound of the smallest radius.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import Apgd, ApgdState
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target, one_stage_attack
from robustbench_vlm.attacks.batching import Rows, put, run_in_batches, take
from robustbench_vlm.attacks.fab import fab
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import Ball, L2Ball, LinfBall, as_factor, distance
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_WARM_STEP = 0.5
"""The first step size of APGD as a fraction of the radius, if it starts from an adversarial example."""


@dataclass
class MinEpsState(ApgdState):
    """The state of the current run of APGD and of the binary search of each sample. Radii are float32 (B,)."""

    closest: Tensor
    """The closest adversarial example so far, or the clean image, float32 (B, 3, H, W) in [0, 1]."""
    high: Tensor
    """The distance of `closest` in the norm of the threat. It is infinite if no adversarial example is known."""
    low: Tensor
    """The largest radius at which APGD failed, or 0."""
    radius: Tensor
    """The radius of the current run."""
    number: Tensor
    """The number of earlier runs, int64 (B,)."""


@dataclass(frozen=True, kw_only=True)
class MinEps(Apgd):
    """A binary search with at most `restarts` runs of APGD for each sample, between 0 and the radius of the threat."""

    known: Tensor
    """An adversarial example within the radius, or another image, for each sample of the batch, (N, 3, H, W)."""
    distances: Tensor
    """The distance of each adversarial example in `known`, float32 (N,). It is infinite for other images."""

    def start(self, model: CountedClassifier, rows: Rows) -> MinEpsState:
        """Return the state at the start of the first round."""
        closest, high = self.known[rows.index], self.distances[rows.index]
        return self._round(rows, torch.zeros_like(rows.labels), closest, high, torch.zeros_like(high))

    def _round(self, rows: Rows, number: Tensor, closest: Tensor, high: Tensor, low: Tensor) -> MinEpsState:
        """Return the state at the start of a run of APGD at the middle of the interval from `low` to `high`."""
        is_known = high.isfinite()
        radius = torch.where(is_known, (low + high) / 2, float(self.threat.eps))
        ball = _balls(self.threat.norm, rows.images, radius)
        begun = self._begin(rows, ball, rows.labels, number)
        point = torch.where(as_factor(is_known), ball.clip(closest), begun.point)
        fields = {**vars(begun), "point": point, "previous": point.clone(), "best": point.clone()}
        fields["step_size"] = torch.where(is_known, _WARM_STEP, 2.0).to(radius) * radius
        return MinEpsState(**fields, closest=closest, high=high, low=low, radius=radius, number=number)

    def _finish(self, state: ApgdState) -> ApgdState:
        """Begin the next round of the samples whose run is over, because it succeeded or has no steps left."""
        assert isinstance(state, MinEpsState)
        over = (state.rows.finished | (state.iteration > self.steps)).nonzero().squeeze(1)
        if not len(over):
            return state
        kept = take(state, over)
        rows, broken = kept.rows, kept.rows.finished
        high = torch.where(broken, distance(self.threat, rows.images, rows.adversarial), kept.high)
        closest = torch.where(as_factor(broken), rows.adversarial, kept.closest)
        low = torch.where(broken, kept.low, kept.radius)
        rows.finished = (kept.number + 1 == self.restarts) | high.isinf()
        rows.adversarial = torch.where(as_factor(high.isinf()), kept.best, closest)
        return put(state, over, self._round(rows, kept.number + 1, closest, high, low))


def _balls(norm: str, images: Tensor, radius: Tensor) -> Ball:
    """Return the balls around images (B, 3, H, W) with one radius per image, float32 (B,)."""
    if norm == "L2":
        return L2Ball(images, radius)
    size = as_factor(radius)
    return LinfBall((images - size).clamp_min_(0), (images + size).clamp_max_(1))


def min_eps(
    classifier: Classifier,
    batch: Batch,
    *,
    batch_size: int,
    fab_steps: int,
    fab_targets: int,
    rounds: int,
    **parameters: Any,
) -> Outcome:
    """Search for the closest adversarial example of each sample, within the radius of the batch.

    `fab_steps` and `fab_targets` are parameters of `Fab`. `rounds` is the largest number of runs of APGD. The other
    parameters are fields of `Apgd`.
    """
    everywhere = replace(batch, threat=Threat(batch.threat.norm, Fraction(0)))
    first = fab(classifier, everywhere, batch_size=batch_size, steps=fab_steps, targets=fab_targets)
    away = distance(batch.threat, batch.images, first.adversarial)
    # FAB returns the clean image if it finds no adversarial example.
    usable = (away > 0) & (away <= float(batch.threat.eps))
    method = MinEps(
        threat=batch.threat,
        known=first.adversarial,
        distances=away.masked_fill(~usable, float("inf")),
        restarts=rounds,
        **parameters,
    )
    found = run_in_batches(method, classifier, batch, batch_size=batch_size)
    return replace(found, forward=found.forward + first.forward, backward=found.backward + first.backward)


def min_eps_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample whose search has the most failed runs."""
    of_fab = {"steps": parameters["fab_steps"], "targets": parameters["fab_targets"]}
    without, with_gradient = calls_per_target(of_fab, num_classes)
    return without, with_gradient + (int(parameters["steps"]) + 1) * int(parameters["rounds"])


MIN_EPS = one_stage_attack(
    Stage(
        "min-eps",
        "min-eps",
        f"{__name__}:min_eps",
        {"loss": "pm", "steps": 40, "rounds": 8, "fab_steps": 20, "fab_targets": 3},
        calls=min_eps_calls,
        mixes_datasets=True,
    ),
    "the closest adversarial example within eps, by FAB and a binary search with APGD",
    paper="arXiv:1907.02044, arXiv:2003.01690",
)
