"""Sim-CLIP: FARE by the cosine, in a Siamese form with a stopped gradient (arXiv 2407.14971)."""

from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import fare
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return half the negative cosine to the frozen clean embedding, twice, (B,).

    The second half stops the gradient at the student, and the teacher has none: it counts in the value alone.
    """
    half = -functional.cosine_similarity(context.student(images), context.teacher_clean(), dim=1) / 2
    return half + half.detach()


SIM_CLIP = Defense(
    name="sim-clip",
    loss=loss,
    inner=InnerAttack(fare.loss, steps=10, step_size=Fraction(1, 4), momentum=0.9),
    schedule=Schedule("adamw", lr=1e-3, weight_decay=1e-5, batch_size=64, steps=10_000, warmup=1400),
    paper="https://arxiv.org/abs/2407.14971",
    fidelity="official code",
    deviations=("a step of the inner attack is a quarter of eps; the released code steps 1/255 always",),
)
