"""GLADIATOR rebuilt from its named ingredients (Dong et al., KDD 2025, doi 10.1145/3690624.3709296).

No code and no formulas of it are public. Known are the ingredients: images and text embeddings are attacked together,
the effective rank of the image embeddings is kept up, and the embeddings get modulated noise. How each is done here,
and every number, is ours.
"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits

_TINY = 1e-12


def attacked_loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the cross-entropy with the hard label against the worst text embeddings, (B,)."""
    return _labelled(context, context.student(images))


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the cross-entropy of noisy embeddings against the worst texts, less the entropy of the batch, (B,).

    Each number of an embedding is multiplied by 1 + sigma n, n normal and the sample's own. The entropy is the same for
    all samples of the batch.
    """
    features = context.student(images)
    noise = randomness.normal(randomness.derive(context.keys, "feature noise"), 0, features.shape[1:])
    noisy = features * (1 + context.settings["sigma"] * noise.to(features))
    unit = functional.normalize(features, dim=1)
    moment = context.total(unit.T @ unit) / context.total(torch.ones_like(unit[:, 0]).sum())
    return _labelled(context, noisy) - context.settings["rank"] * spectral_entropy(moment)


def worst_texts(cosines: Tensor, labels: Tensor, rho: float) -> Tensor:
    """Return the cosines (B, C) with texts that moved within `rho` in [0, 1), each against the sample: exactly.

    A unit vector's ball of that radius turns it by up to arcsin(rho): away from the image for the true class, towards
    it for all others, which is the largest cross-entropy that such texts can give.
    """
    if not 0 <= rho < 1:
        raise UserError(f"the setting rho is {rho}: it is the radius of a ball about a unit vector, from 0 to below 1")
    turn = (1 - rho**2) ** 0.5
    across = rho * (1 - cosines.square()).clamp_min(_TINY).sqrt()
    away = torch.where(cosines < -turn, -torch.ones_like(cosines), cosines * turn - across)
    towards = torch.where(cosines > turn, torch.ones_like(cosines), cosines * turn + across)
    is_true = torch.arange(cosines.shape[1], device=labels.device) == labels[:, None]
    return torch.where(is_true, away, towards)


def spectral_entropy(moment: Tensor) -> Tensor:
    """Return the entropy of the eigenvalues of a second moment (D, D) of trace 1; its exponential is an effective rank.

    Roy and Vetterli (EUSIPCO 2007) take singular values; their squares, taken here, have a slope at zero that rounding
    does not decide.
    """
    energies = torch.linalg.eigvalsh(moment).clamp_min(_TINY)
    entropy: Tensor = -(energies * energies.log()).sum()
    return entropy


def _labelled(context: LossContext, features: Tensor) -> Tensor:
    cosines = worst_texts(logits(features, context.text_features, 1.0), context.labels, context.settings["rho"])
    return functional.cross_entropy(context.settings["scale"] * cosines, context.labels, reduction="none")


GLADIATOR = Defense(
    name="gladiator",
    loss=loss,
    inner=InnerAttack(attacked_loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=1e-5, weight_decay=0.0, batch_size=256, epochs=10, warmup=1000),
    settings={"scale": 100.0, "rho": 0.01, "sigma": 0.1, "rank": 0.1},
    batchwise=True,
    paper="https://doi.org/10.1145/3690624.3709296",
    fidelity="reconstruction",
    deviations=(
        "built from the ingredients that a summary names; formulas, radii, weights and schedule are ours",
        "texts are attacked in closed form, each class within its own ball",
        "the effective rank is that of the batch; its weight, like the noise, is not from the paper",
    ),
)
