"""Sim-CLIP: a Siamese loss on the cosine of adversarial and clean features (Hossain and Imteaj, arXiv 2407.14971).

    L = -(cos(f(x_adv), stop(f0(x))) + cos(stop(f(x_adv)), f0(x))) / 2

f is the image encoder that is trained. f0 is its frozen copy from before the training. No gradient flows through
stop(). The released code is speedlab-git/SimCLIP 9918e7a, which is based on FARE's code.
"""

from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import fare
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,).

    Only the first term has a gradient, because f0 is frozen.
    """
    half = -functional.cosine_similarity(context.student(images), context.teacher_clean(), dim=1) / 2
    return half + half.detach()


SIM_CLIP = Defense(
    name="sim-clip",
    loss=loss,
    inner=InnerAttack(fare.loss, steps=10, step_size=Fraction(1, 255), step_unit="pixel range", momentum=0.9),
    schedule=Schedule("adamw", lr=1e-3, weight_decay=1e-5, batch_size=64, steps=10_000, warmup=1400),
    paper="https://arxiv.org/abs/2407.14971",
    fidelity="official code",
    deviations=(*fare.DEVIATIONS, *fare.CODE_DEVIATIONS),
)
SIM_CLIP_CODE = SIM_CLIP.as_in_code(fare.CODE_DEVIATIONS, inner=fare.INNER, schedule=fare.FIRST_LR, resize=fare.RESIZE)
