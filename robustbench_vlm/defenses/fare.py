"""FARE: keep the features of adversarial images close to the frozen model's features (Schlarmann et al., ICML 2024).

    L = |f(x_adv) - f0(x)|^2   (equation 3 of arXiv 2402.12336)

f is the image encoder that is trained. f0 is its frozen copy from before the training. Features are not normalised. The
loss does not use labels or texts. The released code is chs20/RobustVLM d257a53, with the arguments of its README.
"""

from fractions import Fraction

from torch import Tensor

from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Resize, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,)."""
    return (context.student(images) - context.teacher_clean()).square().sum(dim=1)


INNER = {"clamp_start": False}
"""Settings of the inner attack in the released code. The recipe NAME@code uses them, and also `FIRST_LR` and
`RESIZE`."""
FIRST_LR = {"first_lr": "full"}
RESIZE = Resize("bicubic")
DEVIATIONS = (
    "the learning rate of the first step is the first value of the warm-up; the released code uses the full learning"
    " rate",
    "the pixels of the random start are clamped to [0, 1]; the released code does not clamp them for the first pass",
    "images of a folder are rotated by their EXIF data, cropped and then resized; the released code ignores EXIF data"
    " and crops after the resize",
)
"""Differences between the recipe NAME and the released code. The recipe NAME@code removes these differences."""
CODE_DEVIATIONS = (
    "the image encoder is trained in eval mode; the released code uses train mode, which makes a difference only for"
    " ResNets",
)

FARE = Defense(
    name="fare",
    loss=loss,
    inner=InnerAttack(loss, steps=10, step_size=Fraction(1, 255), step_unit="pixel range", momentum=0.9),
    schedule=Schedule("adamw", lr=1e-5, weight_decay=1e-4, batch_size=128, steps=20_000, warmup=1400),
    paper="https://arxiv.org/abs/2402.12336",
    fidelity="official code",
    deviations=(*DEVIATIONS, *CODE_DEVIATIONS),
)
FARE_CODE = FARE.as_in_code(CODE_DEVIATIONS, inner=INNER, schedule=FIRST_LR, resize=RESIZE)
