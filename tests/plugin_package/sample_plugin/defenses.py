"""A defense that keeps the embeddings of attacked images close to those of the clean images."""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the squared distance to the teacher's embeddings of the clean images, float32 (B,)."""
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


PULL = Defense(
    name="pull",
    loss=loss,
    inner=InnerAttack(loss, steps=1, step_size=Fraction(1)),
    schedule=Schedule("adamw", lr=1e-3, weight_decay=0.0, batch_size=8, epochs=1, warmup=0),
    paper="made up",
)
