"""R-TPT: tune the prompts on confident views, then weight the views by agreement (CVPR 2025, arXiv 2504.11195)."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.augmix import random_views
from robustbench_vlm.test_time.base import (
    DefenseContext,
    Objective,
    Passes,
    TestTimeDefense,
    inner_gradient,
    straight_through,
    straight_through_sign,
)

_CONTEXT = slice(1, 5)
"""The positions of the tokens that are tuned. They are the four tokens after the start token."""
_ADAM_EPS, _DECAY = 1e-8, 0.01
"""Settings of AdamW. They are the defaults of torch."""


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of images (B, 3, H, W) in [0, 1].

    The logits are a weighted mean over the views of an image. `agreement` computes the weights. The texts are tuned
    separately for each image.
    """
    return logits_of_views(context, random_views(context.keys, images, int(context.settings["views"])))


def texts_of(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the text embeddings, float32 (B, C, D) of norm 1, after the tuning on each image (B, 3, H, W)."""
    return texts_of_views(context, random_views(context.keys, images, int(context.settings["views"])))


def texts_of_views(context: DefenseContext, views: Tensor) -> Tensor:
    """Return the text embeddings, float32 (B, C, D), after the tuning on views (B, V, 3, H, W), without a gradient."""
    with torch.no_grad():
        return tuned_texts(context, features_of_views(context, views))


def logits_of_views(context: DefenseContext, views: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of V views of each image, float32 (B, V, 3, H, W) in [0, 1]."""
    settings = context.settings
    features = features_of_views(context, views)
    with torch.set_grad_enabled(context.differentiate and torch.is_grad_enabled()):
        seen = features if context.differentiate else features.detach()
        texts = tuned_texts(context, seen)
        weights = agreement(seen, min(int(settings["neighbours"]), views.shape[1]), settings["temperature"])
    scores: Tensor = context.scale * features @ texts.transpose(1, 2)
    return (weights[:, :, None] * scores).sum(dim=1)


def features_of_views(context: DefenseContext, views: Tensor) -> Tensor:
    """Return the embeddings, float32 (B, V, D) of norm 1, of views, float32 (B, V, 3, H, W) in [0, 1]."""
    embedded = functional.normalize(context.image_encoder(views.flatten(0, 1)), dim=-1)
    features: Tensor = embedded.unflatten(0, views.shape[:2])
    return features


def tuned_texts(context: DefenseContext, features: Tensor) -> Tensor:
    """Return text embeddings (B, C, D) of norm 1 after one step of AdamW on the context tokens of each sample.

    `features` are the embeddings of the views, (B, V, D) of norm 1. The views with the lowest entropy are selected. The
    step minimises the mean entropy of the predictions on these views.
    """
    with torch.enable_grad():
        tokens = context.token_embeddings
        start = torch.zeros(len(features), 1, *tokens[0, _CONTEXT].shape).to(features).requires_grad_()
        texts = context.text_encoder(_with_context(tokens, tokens[:, _CONTEXT] + start))
        losses = mean_entropy(context, features, texts)
    gradient = inner_gradient(context, losses, start)
    return context.text_encoder(_with_context(tokens, stepped(context, gradient)))


def mean_entropy(context: DefenseContext, features: Tensor, texts: Tensor) -> Tensor:
    """Return the mean entropy of the predictions on the views with the lowest entropy, float32 (B,).

    `features` are the embeddings of the views, (B, V, D), and `texts` those of the classes, (B, C, D), of norm 1.
    """
    probabilities = (context.scale * features @ texts.transpose(1, 2)).softmax(dim=2)
    entropies = torch.special.entr(probabilities).sum(dim=2)
    chosen = max(1, int(context.settings["share"] * features.shape[1]))
    mean: Tensor = entropies.topk(chosen, dim=1, largest=False).values.mean(dim=1)
    return mean


def negative_entropy_of_views(context: DefenseContext, views: Tensor) -> Tensor:
    """Return minus the loss before the tuning step, float32 (B,), for views, float32 (B, V, 3, H, W) in [0, 1]."""
    features = features_of_views(context, views)
    return -mean_entropy(context, features, context.text_features.expand(len(views), -1, -1))


def stepped(context: DefenseContext, gradient: Tensor) -> Tensor:
    """Return the context tokens (B, C, 4, W) after the first step of AdamW with the gradient (B, 1, 4, W).

    AdamW's first step depends only on the sign of each gradient value, except if the value is as small as AdamW's eps.
    For attacks that differentiate through the step, `straight_through_sign` defines the gradient of the signs.
    """
    lr = context.settings["lr"]
    direction = straight_through(gradient / (gradient.abs() + _ADAM_EPS), straight_through_sign(gradient))
    return context.token_embeddings[:, _CONTEXT] * (1 - lr * _DECAY) - lr * direction


def agreement(features: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Return the weights of the views, float32 (B, V), with sum 1 for each sample.

    `features` are the embeddings of the views, (B, V, D) of norm 1. For each view, the mean cosine with its
    `neighbours` nearest views is computed. The nearest views include the view. The weights are the softmax of the means
    divided by `temperature`.
    """
    nearest = (features @ features.transpose(1, 2)).topk(neighbours, dim=2).values.mean(dim=2)
    return (nearest / temperature).softmax(dim=1)


def _negative_entropy(context: DefenseContext, images: Tensor) -> Tensor:
    return negative_entropy_of_views(context, random_views(context.keys, images, int(context.settings["views"])))


def _with_context(tokens: Tensor, context: Tensor) -> Tensor:
    whole = tokens.expand(len(context), -1, -1, -1)
    return torch.cat([whole[:, :, : _CONTEXT.start], context, whole[:, :, _CONTEXT.stop :]], dim=2)


def _passes(settings: Mapping[str, float]) -> Passes:
    views = int(settings["views"])
    return Passes(forward=views, outer=views)


R_TPT = TestTimeDefense(
    name="r-tpt",
    logits=logits,
    passes=_passes,
    settings={"views": 64.0, "share": 0.1, "lr": 5e-3, "neighbours": 20.0, "temperature": 0.01},
    objective=Objective(
        "minus the mean entropy of the confident views, which the defense decreases", _negative_entropy, _passes
    ),
    images_per_sample=64,
    tunes_prompts=True,
    text_passes="two forward passes and one backward pass of the text encoder for each class and each sample",
    paper="https://arxiv.org/abs/2504.11195",
    fidelity="paper",
    deviations=(
        "random numbers depend only on the sample, so that an image always has the same logits",
        "images are not rounded to 8 bits; the released code rounds them before it makes the views",
        "AugMix does not use posterise and equalise, because they have no gradient",
        "the rotations, shears and shifts of an AugMix chain are applied in one bilinear interpolation",
        "each AugMix chain ends with autocontrast, solarise or unchanged colours",
        "the first four tokens of each dataset's prompt are tuned; the paper tunes the tokens of 'a photo of a'",
    ),
)
R_TPT_16 = dataclasses.replace(
    R_TPT,
    name="r-tpt@16",
    settings={**R_TPT.settings, "views": 16.0, "neighbours": 5.0},
    images_per_sample=16,
    deviations=("16 views are used instead of 64, and the 5 nearest views instead of 20", *R_TPT.deviations),
)
"""R-TPT with 16 views instead of 64, for machines without a GPU."""
