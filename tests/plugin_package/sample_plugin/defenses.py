"""A defense: keep the embeddings of attacked images where those of the clean ones were."""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the squared distance to the frozen model's clean embeddings, (B,)."""
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


PULL = Defense(
    name="pull",
    loss=loss,
    inner=InnerAttack(loss, steps=1, step_size=Fraction(1)),
    schedule=Schedule("adamw", lr=1e-3, weight_decay=0.0, batch_size=8, epochs=1, warmup=0),
    paper="made up",
)
