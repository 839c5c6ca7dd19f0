"""AGFT: the frozen model's softened predictions as targets (Cui et al., CVPR 2026, arXiv 2603.29410)."""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the cross-entropy of the student at scale s with the teacher's softmax at scale gamma * s, (B,).

    The teacher sees the clean images; no hard label is used.
    """
    scale = context.settings["scale"]
    teacher = logits(context.teacher_clean(), context.text_features, context.settings["gamma"] * scale)
    student = logits(context.student(images), context.text_features, scale)
    return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1)


AGFT = Defense(
    name="agft",
    loss=loss,
    inner=InnerAttack(loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=4e-4, weight_decay=0.0, batch_size=256, epochs=10, warmup=1000, cosine="whole"),
    prompt="This is a photo of a {}.",
    settings={"gamma": 0.4, "scale": 180.0},
    paper="https://arxiv.org/abs/2603.29410",
    fidelity="official code",
    deviations=(
        "the inner attack runs in float32 on summed losses; the released code uses half precision and means",
        "images of a folder are resized by bicubic interpolation; the released code's is bilinear",
    ),
)
