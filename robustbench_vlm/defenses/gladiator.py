"""GLADIATOR, reconstructed from a summary of its ingredients (Dong et al., KDD 2025, doi 10.1145/3690624.3709296).

    L = CE(s c(n f(x_adv)), y) - w H,   n = 1 + sigma N(0, 1) for each feature

c are the cosines with the worst text features within a ball of radius rho, H is the spectral entropy of the batch's
image features, s the logit scale, w the setting `rank`. The paper's code and formulas are not public. Its known
ingredients are a joint attack on images and text features, a high effective rank of the image features, and modulated
noise on the features. Their form here, and every number, are our choice.
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
    """Return the cross-entropy with the label and the worst text features for each image, (B,), without noise and H."""
    return _cross_entropy(context, context.student(images))


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return L for each image, (B,). The noise belongs to the sample; H is the same for all samples of the batch."""
    features = context.student(images)
    noise = randomness.normal(randomness.derive(context.keys, "feature noise"), 0, features.shape[1:])
    noisy = features * (1 + context.settings["sigma"] * noise.to(features))
    unit = functional.normalize(features, dim=1)
    moment = context.total(unit.T @ unit) / context.total(torch.ones_like(unit[:, 0]).sum())
    return _cross_entropy(context, noisy) - context.settings["rank"] * spectral_entropy(moment)


def worst_texts(cosines: Tensor, labels: Tensor, rho: float) -> Tensor:
    """Return the cosines (B, C) with the text features within distance `rho` in [0, 1) that are worst for each sample.

    A move of length rho turns a unit vector by at most arcsin(rho). The text of the true class turns away from the
    image, all other texts turn towards it; this gives the largest cross-entropy within the ball, in closed form.
    """
    if not 0 <= rho < 1:
        raise UserError(
            f"the setting rho is {rho}: it is the radius of a ball around a unit vector, from 0 to below 1; change it"
            " by --set rho=N"
        )
    turn = (1 - rho**2) ** 0.5
    across = rho * (1 - cosines.square()).clamp_min(_TINY).sqrt()
    away = torch.where(cosines < -turn, -torch.ones_like(cosines), cosines * turn - across)
    towards = torch.where(cosines > turn, torch.ones_like(cosines), cosines * turn + across)
    is_true = torch.arange(cosines.shape[1], device=labels.device) == labels[:, None]
    return torch.where(is_true, away, towards)


def spectral_entropy(moment: Tensor) -> Tensor:
    """Return the entropy of the eigenvalues of a second moment (D, D) of trace 1; its exponential is an effective rank.

    Roy and Vetterli (EUSIPCO 2007) use singular values. Their squares, used here, have a gradient at zero that does not
    depend on rounding.
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
        "reconstructed from a summary of the method; the formulas, radii, weights and the schedule are our choice",
        "text features are attacked in closed form, each class within its own ball",
        "the effective rank is that of one batch; its weight and the noise level are not from the paper",
    ),
)
