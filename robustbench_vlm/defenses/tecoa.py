"""TeCoA: cross-entropy of the predictions on adversarial images (Mao et al., ICLR 2023, arXiv 2212.07016).

    L = -log softmax(s cos(f(x_adv), g))_y

f is the image encoder that is trained. g are the text features of the classes, s is the logit scale, and y is the
label. The released code is cvlab-columbia/ZSRobust4FoundationModel 1243db6.
"""

import dataclasses
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import fare
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Resize, Schedule, logits


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return the loss of each adversarial image (B, 3, H, W), float32 (B,)."""
    scores = logits(context.student(images), context.text_features, context.settings["scale"])
    return functional.cross_entropy(scores, context.labels, reduction="none")


INNER = {"precision": "float16", "mean_loss": True}
"""Settings of the inner attack in the released code. The recipe NAME@code uses them, and also `RESIZE`. The released
codes of PMG-AFT and TGA-ZSR are based on TeCoA's code and have the same settings."""
RESIZE = Resize("bilinear", Fraction(8, 7))
"""Images are resized to 256 pixels, and the central 224 pixels are cropped."""
DEVIATIONS = (
    "the inner attack runs in float32 on the sum of the losses of a batch; in the released code, it runs in float16 on"
    " their mean",
    "images of a folder are resized to the input size of the image encoder by bicubic interpolation; the released code"
    " resizes them to 256 pixels by bilinear interpolation and crops them to 224 pixels",
)
"""Differences between the recipe NAME and the released code. The recipe NAME@code removes these differences."""
CODE_DEVIATIONS = (
    "the training pass runs in float32; the released code runs it in float16 and scales the loss",
    "only the training loss gives gradients of the weights; in the released code, the inner attack adds gradients too,"
    " which hardly change the weights, because only the training loss is multiplied by a scale (65536 at first)",
    "the last batch of an epoch is left out if it is not full; the released code uses it",
    "the image encoder is trained in eval mode; the released code uses train mode, which makes a difference only for"
    " ResNets",
)
_OWN_DEVIATIONS = (
    "the learning rate is 1e-5, as in later reproductions of the method; the default of the released code is 1e-7",
    "the model of the last epoch is saved; the released weights are those of the best epoch on test images of CIFAR-10,"
    " CIFAR-100, DTD and EuroSAT",
)

TECOA = Defense(
    name="tecoa",
    loss=loss,
    inner=InnerAttack(loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=1e-5, weight_decay=0.0, batch_size=256, epochs=10, warmup=1000),
    settings={"scale": 100.0},
    paper="https://arxiv.org/abs/2212.07016",
    fidelity="paper",
    deviations=(*_OWN_DEVIATIONS, *DEVIATIONS, *CODE_DEVIATIONS),
)
TECOA_CODE = TECOA.as_in_code((*_OWN_DEVIATIONS, *CODE_DEVIATIONS), inner=INNER, resize=RESIZE)
TECOA_FARE = dataclasses.replace(
    fare.FARE,
    name="tecoa-fare",
    loss=loss,
    inner=dataclasses.replace(fare.FARE.inner, loss=loss),
    settings=TECOA.settings,
)
"""TeCoA as in the released code of FARE, with the inner attack and schedule of FARE. These settings give a higher
ImageNet accuracy than the original TeCoA (arXiv 2402.12336, table 10)."""
TECOA_FARE_CODE = TECOA_FARE.as_in_code(
    fare.CODE_DEVIATIONS, inner=fare.INNER, schedule=fare.FIRST_LR, resize=fare.RESIZE
)
