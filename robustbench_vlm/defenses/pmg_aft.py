"""PMG-AFT: TeCoA with two KL terms, to the frozen model and to clean predictions (CVPR 2024, arXiv 2401.04350).

    L = CE(p(x_adv), y) + alpha KL(p0(x_adv) | p(x_adv)) + beta KL(p(x) | p(x_adv))

p are the predictions of the model that is trained. p0 are the predictions of its frozen copy from before the training.
y is the label. The released code is the repository of the authors (serendipity1122 on GitHub) at commit a53fdd8.
"""

from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import tecoa
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,).

    If the setting `detach` is 1, no gradient flows through the clean predictions p(x).
    """
    scale, settings = context.settings["scale"], context.settings
    attacked = logits(context.student(images), context.text_features, scale)
    with torch.no_grad():
        frozen = logits(context.teacher(images), context.text_features, scale)
    clean = logits(context.student(context.images), context.text_features, scale)
    if settings["detach"]:
        clean = clean.detach()
    cross_entropy = functional.cross_entropy(attacked, context.labels, reduction="none")
    guidance = settings["alpha"] * _divergence(frozen, attacked)
    return cross_entropy + guidance + settings["beta"] * _divergence(clean, attacked)


def _divergence(target: Tensor, predicted: Tensor) -> Tensor:
    """Return KL(softmax(target) | softmax(predicted)) for two tensors of logits (B, C), (B,)."""
    log_target = target.log_softmax(dim=1)
    return (log_target.exp() * (log_target - predicted.log_softmax(dim=1))).sum(dim=1)


TINY_IMAGENET = (
    "if the class folders have WordNet ids as names, the 1000 classes of ImageNet are used; the released code uses the"
    " 200 classes of TinyImageNet"
)
_OWN_DEVIATIONS = (
    TINY_IMAGENET,
    "the model of the last epoch is saved; the released code keeps the model of the epoch with the best accuracy on"
    " the test images of its evaluation datasets",
)

PMG_AFT = Defense(
    name="pmg-aft",
    loss=loss,
    inner=InnerAttack(tecoa.loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=5e-5, weight_decay=0.0, batch_size=256, epochs=10, warmup=1000),
    settings={"scale": 100.0, "alpha": 1.0, "beta": 1.0, "detach": 0.0},
    paper="https://arxiv.org/abs/2401.04350",
    fidelity="paper",
    deviations=(*_OWN_DEVIATIONS, *tecoa.DEVIATIONS, *tecoa.CODE_DEVIATIONS),
)
PMG_AFT_CODE = PMG_AFT.as_in_code(
    (
        "alpha and beta are 256, because the released code adds up both divergences over a batch of 256 images and"
        " averages only the cross-entropy; if you change the batch size, set alpha and beta to the new size",
        "both divergences have the order of arguments of commit a53fdd8 of the released code; commit 4baf55d has the"
        " reverse order",
        "pixels are normalised by CLIP's mean and standard deviation; the released code uses the mean and standard"
        " deviation of ImageNet",
        *_OWN_DEVIATIONS,
        *tecoa.CODE_DEVIATIONS,
    ),
    inner=tecoa.INNER,
    resize=tecoa.RESIZE,
    settings={"scale": 1.0, "alpha": 256.0, "beta": 256.0, "detach": 0.0},
)
