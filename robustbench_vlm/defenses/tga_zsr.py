"""TGA-ZSR: TeCoA with two terms that keep attention maps close to the frozen model's maps (NeurIPS 2024).

    L = CE(p(x_adv), y) + alpha |A(x_adv) - A0(x)| + beta |A(x) - A0(x)|   (arXiv 2410.21802)

A is the attention map of the image encoder that is trained, for the text of the true class y. A0 is the attention map
of a frozen copy of this encoder from before the training. The distances are L2 norms over all pixels. The released code
is zhyblue424/TGA-ZSR 663fe57.
"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import pmg_aft, tecoa
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits

_TINY = 1e-12


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,)."""
    settings, size = context.settings, (context.images.shape[2], context.images.shape[3])
    text = context.text_features[context.labels]
    over_places = bool(settings["over_places"])
    with torch.no_grad():
        frozen = attention(context.teacher_dense(context.images)[1], text, size, over_places=over_places)
    features, patches = context.student_dense(images)
    attacked = attention(patches, text, size, over_places=over_places)
    clean = attention(context.student_dense(context.images)[1], text, size, over_places=over_places)
    scores = logits(features, context.text_features, settings["scale"])
    cross_entropy = functional.cross_entropy(scores, context.labels, reduction="none")
    return cross_entropy + settings["alpha"] * _distance(attacked, frozen) + settings["beta"] * _distance(clean, frozen)


def attention(patches: Tensor, text: Tensor, size: tuple[int, int], *, over_places: bool = False) -> Tensor:
    """Return attention maps, float32 (B, H, W) in [0, 1], for an image size (H, W).

    A map is the product of the patch features `patches`, (B, T, D), with the text features `text`, (B, D). The product
    is scaled to the range [0, 1] and resized to `size`. If `over_places` is true, each of the D features is first
    divided by its norm over the T patches. The released code does this division. The paper does not mention it.
    """
    if over_places:
        patches = functional.normalize(patches, dim=1)
    products = (patches @ text[:, :, None]).squeeze(2)
    low, high = products.amin(dim=1, keepdim=True), products.amax(dim=1, keepdim=True)
    side = round(products.shape[1] ** 0.5)
    maps = ((products - low) / (high - low + _TINY)).unflatten(1, (1, side, side))
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False).squeeze(1)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # At the first step, the trained encoder is equal to its frozen copy, so the distance is zero. The gradient of the
    # square root is infinite at zero. The argument of the square root is therefore clamped.
    return (first - second).square().sum(dim=(1, 2)).clamp_min(_TINY).sqrt()


_OWN_DEVIATIONS = (
    "a ResNet has no patches, so the positions of its last feature map before attention pooling are used instead",
    pmg_aft.TINY_IMAGENET,
)

TGA_ZSR = Defense(
    name="tga-zsr",
    loss=loss,
    inner=InnerAttack(tecoa.loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=1e-4, weight_decay=0.0, batch_size=128, epochs=10, warmup=1000),
    settings={"scale": 100.0, "alpha": 0.08, "beta": 0.05, "over_places": 0.0},
    paper="https://arxiv.org/abs/2410.21802",
    fidelity="paper",
    deviations=(*_OWN_DEVIATIONS, *tecoa.DEVIATIONS, *tecoa.CODE_DEVIATIONS),
)
TGA_ZSR_CODE = TGA_ZSR.as_in_code(
    (
        "the norm of each feature is computed over the patches only; the released code includes the class token in the"
        " norm",
        *_OWN_DEVIATIONS,
        *tecoa.CODE_DEVIATIONS,
    ),
    inner=tecoa.INNER,
    resize=tecoa.RESIZE,
    settings={**TGA_ZSR.settings, "over_places": 1.0},
)
