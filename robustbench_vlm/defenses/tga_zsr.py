"""TGA-ZSR: TeCoA whose text-guided attention stays that of the frozen model (NeurIPS 2024, arXiv 2410.21802)."""

import dataclasses
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses import tecoa
from robustbench_vlm.defenses.base import Defense, InnerAttack, LossContext, Schedule, logits

_TINY = 1e-12


def loss(context: LossContext, images: Tensor) -> Tensor:
    """Return CE(x_adv, y) + alpha |A(x_adv) - A0(x)| + beta |A(x) - A0(x)|, (B,).

    A is the map of `attention` at the true class, A0 the frozen tower's; the distances are of length 2 over all pixels.
    """
    settings, size = context.settings, (context.images.shape[2], context.images.shape[3])
    text = context.text_features[context.labels]
    over_places = bool(settings["over_places"])
    with torch.no_grad():
        frozen = attention(context.teacher_dense(context.images)[1], text, size, over_places=over_places)
    features, places = context.student_dense(images)
    attacked = attention(places, text, size, over_places=over_places)
    clean = attention(context.student_dense(context.images)[1], text, size, over_places=over_places)
    scores = logits(features, context.text_features, settings["scale"])
    labelled = functional.cross_entropy(scores, context.labels, reduction="none")
    return labelled + settings["alpha"] * _distance(attacked, frozen) + settings["beta"] * _distance(clean, frozen)


def attention(places: Tensor, text: Tensor, size: tuple[int, int], *, over_places: bool = False) -> Tensor:
    """Return the map of how much each place (B, T, D) speaks of a text (B, D), stretched to [0, 1], (B, H, W).

    The released code first divides each feature by its length `over_places`, which the paper does not say.
    """
    if over_places:
        places = functional.normalize(places, dim=1)
    spoken = (places @ text[:, :, None]).squeeze(2)
    low, high = spoken.amin(dim=1, keepdim=True), spoken.amax(dim=1, keepdim=True)
    side = round(spoken.shape[1] ** 0.5)
    stretched = ((spoken - low) / (high - low + _TINY)).unflatten(1, (1, side, side))
    return functional.interpolate(stretched, size, mode="bilinear", align_corners=False).squeeze(1)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # A square root of exactly zero, where a student is still its teacher, has no slope.
    return (first - second).square().sum(dim=(1, 2)).clamp_min(_TINY).sqrt()


TGA_ZSR = Defense(
    name="tga-zsr",
    loss=loss,
    inner=InnerAttack(tecoa.loss, steps=2, step_size=Fraction(1)),
    schedule=Schedule("sgd", lr=1e-4, weight_decay=0.0, batch_size=128, epochs=10, warmup=1000),
    settings={"scale": 100.0, "alpha": 0.08, "beta": 0.05, "over_places": 0.0},
    paper="https://arxiv.org/abs/2410.21802",
    fidelity="paper",
    deviations=("a residual tower has no patches: the places are those of its last map before it is reduced to one",),
)
TGA_ZSR_CODE = dataclasses.replace(
    TGA_ZSR,
    name="tga-zsr@code",
    settings={**TGA_ZSR.settings, "over_places": 1.0},
    fidelity="official code",
    deviations=(*TGA_ZSR.deviations, "the length over the places is that of the patches, without the class token"),
)
