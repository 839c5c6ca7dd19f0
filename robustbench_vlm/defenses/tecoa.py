"""TeCoA: cross-entropy of adversarial images against the class texts (Mao et al., ICLR 2023, arXiv 2212.07016)."""

import dataclasses
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the cross-entropy with the hard label at logit scale `scale`, (B,)."""
    scores = logits(context.student(images), context.text_features, context.settings["scale"])
    return functional.cross_entropy(scores, context.labels, reduction="none")


TECOA = Defense(
    name="tecoa",
    loss=loss,
    inner=InnerAttack(loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=1e-5, weight_decay=0.0, batch_size=256, epochs=10, warmup=1000),
    settings={"scale": 100.0},
    paper="https://arxiv.org/abs/2212.07016",
    fidelity="paper",
    deviations=(
        "the learning rate is that of later re-runs: the released code's default is 1e-7",
        "images of a folder are resized to the tower's size; the released code takes the middle of 256 x 256",
    ),
)
TECOA_FARE = dataclasses.replace(
    TECOA,
    name="tecoa-fare",
    inner=InnerAttack(loss, steps=10, step_size=Fraction(1, 4), momentum=0.9),
    schedule=Schedule("adamw", lr=1e-5, weight_decay=1e-4, batch_size=128, steps=20_000, warmup=1400),
    paper="https://arxiv.org/abs/2402.12336",
    fidelity="official code",
    deviations=("a step of the inner attack is a quarter of eps; the released code steps 1/255 always",),
)
"""The same loss by the schedule of FARE's authors, which keeps far more of ImageNet (their table 10)."""
