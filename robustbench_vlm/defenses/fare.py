"""FARE: keep the features of attacked images close to those of the frozen model (Schlarmann et al., ICML 2024).

    L = |f(x_adv) - f0(x)|^2   (equation 3 of arXiv 2402.12336)

f is the trained image encoder, f0 the frozen one. Features are not normalised; labels and texts are not used.
"""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return L for each image, (B,)."""
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


FARE = Defense(
    name="fare",
    loss=loss,
    inner=InnerAttack(loss, steps=10, step_size=Fraction(1, 4), momentum=0.9),
    schedule=Schedule("adamw", lr=1e-5, weight_decay=1e-4, batch_size=128, steps=20_000, warmup=1400),
    paper="https://arxiv.org/abs/2402.12336",
    fidelity="official code",
    deviations=(
        "the step size of the inner attack is a quarter of eps, as for FARE4; the released code always uses 1/255",
    ),
)
