"""AGFT: cross-entropy with softened predictions of the frozen model as targets (CVPR 2026, arXiv 2603.29410).

    L = -sum_k p_k(x) log q_k(x_adv),   p(x) = softmax(gamma s cos(f0(x), g)),   q(x_adv) = softmax(s cos(f(x_adv), g))

f is the image encoder that is trained. f0 is its frozen copy from before the training. g are the text features of the
classes, and s is the logit scale. A gamma below 1 softens the predictions p. The released code is YuboCui/AGFT 0031a8f.
"""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses import tecoa
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Resize, Schedule, logits


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,). It does not use the labels."""
    scale = context.settings["scale"]
    teacher = logits(context.teacher_clean(), context.text_features, context.settings["gamma"] * scale)
    student = logits(context.student(images), context.text_features, scale)
    return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1)


_CODE_DEVIATIONS = (
    "the teacher and the training pass run in float32; the released code runs them in float16 and scales the loss",
    "the last batch of an epoch is left out if it is not full; the released code uses it",
    "the image encoder and the teacher are in eval mode; the released code uses train mode, which makes a difference"
    " only for ResNets",
)

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
        tecoa.DEVIATIONS[0],
        "images of a folder are resized by bicubic interpolation; the released code uses bilinear interpolation",
        *_CODE_DEVIATIONS,
    ),
)
AGFT_CODE = AGFT.as_in_code(_CODE_DEVIATIONS, inner=tecoa.INNER, resize=Resize("bilinear"))
