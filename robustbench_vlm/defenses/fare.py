"""FARE: embeddings of attacked images stay where the frozen tower had them (ICML 2024, arXiv 2402.12336)."""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the squared distance to the frozen tower's clean embedding, neither of them normalised, (B,).

    No label and no text is used (equation 3).
    """
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


FARE = Defense(
    name="fare",
    loss=loss,
    inner=InnerAttack(loss, steps=10, step_size=Fraction(1, 4), momentum=0.9),
    schedule=Schedule("adamw", lr=1e-5, weight_decay=1e-4, batch_size=128, steps=20_000, warmup=1400),
    paper="https://arxiv.org/abs/2402.12336",
    fidelity="official code",
    deviations=("a step of the inner attack is a quarter of eps, as in FARE4; the released code steps 1/255 always",),
)
