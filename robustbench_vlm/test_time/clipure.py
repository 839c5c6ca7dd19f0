"""CLIPure-Cos: move image embeddings towards the embedding of texts without a class (ICLR 2025, arXiv 2502.18176)."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import DefenseContext, Objective, Passes, TestTimeDefense, straight_through


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits of purified image embeddings, float32 (B, C), for images (B, 3, H, W) in [0, 1].

    If `context.differentiate` is false, the gradient treats the change of the embedding as a constant.
    """
    embedded = functional.normalize(context.image_encoder(images), dim=-1)
    purified = purify(context, embedded)
    if not context.differentiate:
        purified = straight_through(purified, embedded)
    return context.scale * purified @ context.text_features.T


def frozen_logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the same logits as `logits`. The gradient treats the direction of each step as a constant.

    The released code computes this gradient, because its inner gradients have no graph.
    """
    embedded = functional.normalize(context.image_encoder(images), dim=-1)
    return context.scale * purify(context, embedded, frozen=True) @ context.text_features.T


def purify(context: DefenseContext, embedded: Tensor, *, frozen: bool = False) -> Tensor:
    """Move embeddings (B, D) of norm 1 towards the mean embedding of the null texts (texts without a class name).

    Gradient ascent increases the cosine of each embedding with that mean. The setting `step` is the length of each
    step. It does not depend on the length of the gradient. After each step, the embeddings are normalised again. If
    `frozen` is true, the direction of each step is a constant for the gradient. Returns float32 (B, D) of norm 1.
    """
    null = _mean_null(context)
    for _ in range(int(context.settings["iterations"])):
        # z and n are unit vectors. The gradient of cos(z, n) with respect to z is n minus its component along z.
        ascent = null - (embedded @ null)[:, None] * embedded
        direction = functional.normalize(ascent, dim=-1)
        moved = embedded + context.settings["step"] * (direction.detach() if frozen else direction)
        embedded = functional.normalize(moved, dim=-1)
    return embedded


def _mean_null(context: DefenseContext) -> Tensor:
    return functional.normalize(context.null_features.mean(dim=0), dim=-1)


def _null_cosine(context: DefenseContext, images: Tensor) -> Tensor:
    return functional.normalize(context.image_encoder(images), dim=-1) @ _mean_null(context)


def _passes(settings: Mapping[str, float]) -> Passes:
    return Passes(forward=1)


CLIPURE_COS = TestTimeDefense(
    name="clipure-cos",
    logits=logits,
    passes=_passes,
    settings={"iterations": 10.0, "step": 30.0},
    objective=Objective(
        "the cosine of the image embedding and the mean embedding of the null texts, which the defense increases",
        _null_cosine,
        _passes,
    ),
    null_texts=("a photo of a .", "a photo of the .", "a picture of a .", "an image of a .", "a rendering of a ."),
    paper="https://arxiv.org/abs/2502.18176",
    fidelity="paper",
    deviations=(
        "the gradient of each image is divided by its own length; the released code divides by the length of the"
        " gradient of the whole batch, so its logits depend on the batch",
        "the step is the published one; in the released code, a larger batch makes the steps of each image smaller",
        "five null texts are used instead of the list of the released code",
    ),
)
CLIPURE_COS_SHORT = dataclasses.replace(
    CLIPURE_COS,
    name="clipure-cos@short",
    settings={**CLIPURE_COS.settings, "step": 0.05},
    deviations=(
        "the step is 0.05; the published step is 30, which moves an embedding beyond the null texts",
        *CLIPURE_COS.deviations,
    ),
)
"""CLIPure-Cos with steps of 3 degrees. The published step rotates an embedding by 88 degrees. This moves the
embedding beyond the null texts (texts without a class name)."""
