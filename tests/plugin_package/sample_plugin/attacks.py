"""The weakest attack: one random point of the ball."""

from torch import zeros_like

from robustbench_vlm.attacks.base import Attack, Batch, Logits, Outcome, Stage
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import project


def noise(logits: Logits, batch: Batch, *, batch_size: int, spread: float) -> Outcome:
    """Return images with uniform noise of `spread` times eps; no pass is spent."""
    drawn = randomness.uniform(batch.keys, zeros_like(batch.keys), batch.images.shape[1:]).to(batch.images)
    moved = batch.images + spread * float(batch.threat.eps) * (2 * drawn - 1)
    nothing = zeros_like(batch.labels)
    return Outcome(project(batch.threat, batch.images, moved), nothing, nothing)


NOISE = Attack(
    "noise", (Stage("noise", "sample-noise", "sample_plugin.attacks:noise", {"spread": 1.0}),), "uniform noise"
)
