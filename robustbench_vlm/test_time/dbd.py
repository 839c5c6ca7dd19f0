"""DBD: move the image embedding in the direction in which transformations move it (ICLR 2026, arXiv 2606.06186)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import DefenseContext, Objective, Passes, TestTimeDefense
from robustbench_vlm.test_time.transformations import VIEWS, transformed


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits, float32 (B, C), of the moved embeddings of images, float32 (B, 3, H, W) in [0, 1].

    If `context.differentiate` is false, the gradient treats the move of the embedding as a constant.
    """
    own = functional.normalize(context.image_encoder(images), dim=-1)
    with torch.set_grad_enabled(context.differentiate and torch.is_grad_enabled()):
        change = move(context, own, _view_features(context, images))
    return context.scale * functional.normalize(own + change, dim=-1) @ context.text_features.T


def move(context: DefenseContext, own: Tensor, features: Tensor) -> Tensor:
    """Return the changes of embeddings, float32 (B, D).

    `own` are the embeddings of the images, (B, D) of norm 1. `features` are those of the transformed images,
    (B, V, D) of norm 1. The V embeddings with the lowest entropy are the reference. The change is the mean difference
    between them and `own`. If the mean cosine between the differences and their mean is above `threshold`, the change
    is multiplied by `factor`.
    """
    differences = _differences(context, own, features)
    mean = differences.mean(dim=1)
    is_biased = bias_score(differences.detach(), mean.detach()) > context.settings["threshold"]
    return torch.where(is_biased[:, None], context.settings["factor"] * mean, mean)


def bias_score(differences: Tensor, mean: Tensor) -> Tensor:
    """Return the mean cosine between differences (B, K, D) and their mean (B, D), float32 (B,) in [-1, 1]."""
    directions = functional.normalize(differences, dim=-1, eps=1e-8)
    return (directions @ functional.normalize(mean, dim=-1, eps=1e-8)[:, :, None]).mean(dim=(1, 2))


def _view_features(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the embeddings of the V transformed images of each image, float32 (B, V, D) of norm 1."""
    views = transformed(context.keys, images)
    embedded = functional.normalize(context.image_encoder(views.flatten(0, 1)), dim=-1)
    features: Tensor = embedded.unflatten(0, views.shape[:2])
    return features


def _differences(context: DefenseContext, own: Tensor, features: Tensor) -> Tensor:
    """Return the K references of each image minus its embedding, float32 (B, K, D)."""
    scores = context.scale * features @ context.text_features.T
    entropies = torch.special.entr(scores.softmax(dim=2)).sum(dim=2)
    count = min(int(context.settings["references"]), features.shape[1])
    chosen = entropies.topk(count, dim=1, largest=False).indices
    return features.gather(1, chosen[:, :, None].expand(-1, -1, features.shape[2])) - own[:, None]


def _negative_bias(context: DefenseContext, images: Tensor) -> Tensor:
    own = functional.normalize(context.image_encoder(images), dim=-1)
    differences = _differences(context, own, _view_features(context, images))
    return -bias_score(differences, differences.mean(dim=1))


def _passes(settings: Mapping[str, float]) -> Passes:
    return Passes(forward=1 + VIEWS, outer=1 + VIEWS)


DBD = TestTimeDefense(
    name="dbd",
    logits=logits,
    passes=_passes,
    settings={"references": 16.0, "threshold": 0.8, "factor": 2.5},
    objective=Objective(
        "minus the bias score; above the setting `threshold`, the embedding moves further", _negative_bias, _passes
    ),
    images_per_sample=1 + VIEWS,
    paper="https://arxiv.org/abs/2606.06186",
    fidelity="official code",
    deviations=(
        "the released code was read in a copy of the repository (gmXian/DBD d672db1), because liuls2002/DBD itself was"
        " not available",
        "random numbers depend only on the sample, so that an image always has the same logits",
        "images are not rounded to 8 bits before or after a transformation; the released code reads 8-bit images",
        "crops have the size of the image and are resized once; the released code resizes crops to 224 pixels",
        "the text embeddings are those of the protocol's prompts; the released code averages CuPL texts per class",
    ),
)
