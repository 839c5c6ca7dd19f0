"""FARE: keep the features of adversarial images close to the frozen model's features (Schlarmann et al., ICML 2024).

    L = |f(x_adv) - f0(x)|^2   (equation 3 of arXiv 2402.12336)

f is the image encoder that is trained. f0 is its frozen copy from before the training. Features are not normalised. The
loss does not use labels or texts.
"""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,)."""
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


FARE = Defense(
    name="fare",
    loss=loss,
    inner=InnerAttack(loss, steps=10, step_size=Fraction(1, 4), momentum=0.9),
    schedule=Schedule("adamw", lr=1e-5, weight_decay=1e-4, batch_size=128, steps=20_000, warmup=1400),
    paper="https://arxiv.org/abs/2402.12336",
    fidelity="official code",
    deviations=(
        "the step size of the inner attack is a quarter of eps, as in FARE4; the released code always uses 1/255",
    ),
)
