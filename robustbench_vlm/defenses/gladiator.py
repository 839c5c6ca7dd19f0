"""GLADIATOR, reconstructed from a summary of the method (Dong et al., KDD 2025, doi 10.1145/3690624.3709296).

    L = CE(s c(n f(x_adv)), y) - w H,   n = 1 + sigma N(0, 1) for each feature

f is the image encoder that is trained, and n is multiplicative noise. c are the cosines of image and text features.
Each text feature is replaced by the worst one within the distance rho. H is the spectral entropy of the image features
of the batch, s is the logit scale and w is the setting `rank`.

The code and the formulas of the paper are not public. Three parts of the method are known: a joint attack on images and
text features, a high effective rank of the image features, and modulated noise. The formulas and all numbers here are
choices of this package.
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
    """Return the cross-entropy CE without noise for each adversarial image (B, 3, H, W), float32 (B,)."""
    return _cross_entropy(context, context.student(images))


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,).

    The noise depends on the sample. The entropy H is the same for all samples of the batch.
    """
    features = context.student(images)
    noise = randomness.normal(randomness.derive(context.keys, "feature noise"), 0, features.shape[1:])
    noisy = features * (1 + context.settings["sigma"] * noise.to(features))
    unit = functional.normalize(features, dim=1)
    moment = context.total(unit.T @ unit) / context.total(torch.ones_like(unit[:, 0]).sum())
    return _cross_entropy(context, noisy) - context.settings["rank"] * spectral_entropy(moment)


def worst_texts(cosines: Tensor, labels: Tensor, rho: float) -> Tensor:
    """Return the cosines (B, C) after an attack on the text features.

    The attack is the strongest one within the distance `rho`. `cosines`, (B, C), are the cosines of image and text
    features before the attack, and `labels`, int64 (B,), are the true classes. A change of length rho rotates a unit
    vector by at most arcsin(rho). The text feature of the true class rotates away from the image feature. The text
    features of all other classes rotate towards it. These rotations give the largest cross-entropy within the ball.

    Raises UserError if rho is outside [0, 1).
    """
    if not 0 <= rho < 1:
        raise UserError(
            f"the setting rho is {rho}, and it must be at least 0 and below 1, because it is a distance from a unit"
            " vector: give another value by --set rho=N"
        )
    turn = (1 - rho**2) ** 0.5
    across = rho * (1 - cosines.square()).clamp_min(_TINY).sqrt()
    away = torch.where(cosines < -turn, -torch.ones_like(cosines), cosines * turn - across)
    towards = torch.where(cosines > turn, torch.ones_like(cosines), cosines * turn + across)
    is_true = torch.arange(cosines.shape[1], device=labels.device) == labels[:, None]
    return torch.where(is_true, away, towards)


def spectral_entropy(moment: Tensor) -> Tensor:
    """Return the entropy of the eigenvalues of a second moment, float32 (D, D) with trace 1, as a tensor of shape ().

    The exponential of this entropy is an effective rank. Roy and Vetterli (EUSIPCO 2007) use the entropy of singular
    values. This function uses the squared singular values, because their gradient at zero does not depend on rounding.
    """
    energies = torch.linalg.eigvalsh(moment).clamp_min(_TINY)
    entropy: Tensor = -(energies * energies.log()).sum()
    return entropy


def _cross_entropy(context: LossContext, features: Tensor) -> Tensor:
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
        "the recipe is reconstructed from a summary of the method; its formulas, radii, weights and schedule are"
        " choices of this package",
        "the worst-case text embedding of each class is computed by a formula, without attack steps and independently"
        " of other classes",
        "the effective rank is computed from one batch; the weight of the rank in the loss and the size of the noise"
        " are not from the paper",
    ),
)
