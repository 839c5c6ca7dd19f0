"""A-TPT: R-TPT with views that keep the regions of high attention (ICML 2026, arXiv 2605.19956)."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from robustbench_vlm.test_time.augmix import parts_of_views
from robustbench_vlm.test_time.base import DefenseContext, Objective, Passes
from robustbench_vlm.test_time.r_tpt import R_TPT, logits_of_views, negative_entropy_of_views, texts_of_views
from robustbench_vlm.test_time.relevance import relevance_maps


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of images (B, 3, H, W) in [0, 1], from R-TPT on the guided views."""
    return logits_of_views(context, guided_views(context, images))


def texts_of(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the text embeddings, float32 (B, C, D) of norm 1, after the tuning on each image (B, 3, H, W)."""
    return texts_of_views(context, guided_views(context, images))


def _negative_entropy(context: DefenseContext, images: Tensor) -> Tensor:
    return negative_entropy_of_views(context, guided_views(context, images))


def guided_views(context: DefenseContext, images: Tensor) -> Tensor:
    """Return views of each image, float32 (B, V, 3, H, W) in [0, 1]. The first view is the image.

    The other views mix a random crop with its AugMix chains. The share of the crop is `kept_high` in its regions of
    high relevance and `kept_low` in the other regions. The gradient treats the regions as constants.
    """
    settings = context.settings
    cropped, mixed, kept = parts_of_views(context.keys, images, int(settings["views"]))
    maps = relevance_maps(context.image_encoder, cropped, context.text_features)
    shares = shares_of(maps, kept, settings)[:, None]
    views = (shares * cropped + (1 - shares) * mixed).unflatten(0, (len(images), -1))
    return torch.cat([images[:, None], views], dim=1)


def shares_of(maps: Tensor, kept: Tensor, settings: Mapping[str, float]) -> Tensor:
    """Return the share of the crop in each pixel, float32 (N, H, W), for relevance maps (N, H, W).

    Pixels above the quantile 1 - `area_high` have the share `kept_high`. Of the others, pixels of at most the quantile
    `area_low` have the share `kept_low`. The remaining pixels have the random share `kept`, (N,), of AugMix.
    """
    flat = maps.flatten(1)
    high, low = (
        flat.quantile(share, dim=1)[:, None, None] for share in (1 - settings["area_high"], settings["area_low"])
    )
    rest = torch.where(maps <= low, settings["kept_low"], kept[:, None, None].expand_as(maps))
    return torch.where(maps > high, settings["kept_high"], rest)


def _passes(settings: Mapping[str, float]) -> Passes:
    # Each view except the first needs one more forward pass and one backward pass for its relevance map.
    views = int(settings["views"])
    return Passes(forward=2 * views - 1, inner=views - 1, outer=views)


A_TPT = dataclasses.replace(
    R_TPT,
    name="a-tpt",
    logits=logits,
    passes=_passes,
    objective=Objective(
        "minus the mean entropy of the confident views, which the defense decreases", _negative_entropy, _passes
    ),
    settings={**R_TPT.settings, "area_high": 0.2, "area_low": 0.8, "kept_high": 0.8, "kept_low": 0.2},
    paper="https://arxiv.org/abs/2605.19956",
    fidelity="official code",
    deviations=(
        "the settings are those of the README of SEU-VIPGroup/A-TPT; its data/datautils.py was not available, so the"
        " views are those of r-tpt",
        "for ResNets, the relevance of a region is its token times the gradient of the token; the released code adds an"
        " attention head",
        "a ResNet whose last feature map is one pixel, such as that of the track mini, uses the map before it",
        "as in the released code, views are weighted by agreement; the paper weights them by the total variation of"
        " their attention",
        *R_TPT.deviations,
    ),
)
A_TPT_16 = dataclasses.replace(
    A_TPT,
    name="a-tpt@16",
    settings={**A_TPT.settings, "views": 16.0, "neighbours": 5.0},
    images_per_sample=16,
    deviations=("16 views are used instead of 64, and the 5 nearest views instead of 20", *A_TPT.deviations),
)
"""A-TPT with 16 views instead of 64, for machines without a GPU."""
