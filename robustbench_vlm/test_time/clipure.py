"""CLIPure-Cos: move the image's embedding towards that of texts without a class (ICLR 2025, arXiv 2502.18176)."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import DefenseContext, Passes, TestTimeDefense, straight_through


def logits(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits of the purified embeddings; without gradients of the loop the purification adds a constant."""
    embedded = functional.normalize(context.image_encoder(images), dim=-1)
    purified = purify(context, embedded)
    if not context.differentiate:
        purified = straight_through(purified, embedded)
    return context.scale * purified @ context.text_features.T


def purify(context: DefenseContext, embedded: Tensor) -> Tensor:
    """Return unit embeddings (B, D) after gradient ascent of their cosine with the mean embedding of null texts.

    Each step has the length `step`, whatever the gradient's, and the embedding is brought back to the sphere after it.
    """
    null = functional.normalize(context.null_features.mean(dim=0), dim=-1)
    for _ in range(int(context.settings["iterations"])):
        # Of a unit vector z the gradient of cos(z, n) is n less its part along z.
        ascent = null - (embedded @ null)[:, None] * embedded
        moved = embedded + context.settings["step"] * functional.normalize(ascent, dim=-1)
        embedded = functional.normalize(moved, dim=-1)
    return embedded


def _passes(settings: Mapping[str, float]) -> Passes:
    return Passes(forward=1)


CLIPURE_COS = TestTimeDefense(
    name="clipure-cos",
    logits=logits,
    passes=_passes,
    settings={"iterations": 10.0, "step": 30.0},
    null_texts=("a photo of a .", "a photo of the .", "a picture of a .", "an image of a .", "a rendering of a ."),
    paper="https://arxiv.org/abs/2502.18176",
    fidelity="paper",
    deviations=(
        "the gradient is divided by its own length, not by that of the whole batch, on which the released code's"
        " answers depend: the published step is that of a batch of one",
        "five null templates instead of the released list",
    ),
)
CLIPURE_COS_SHORT = dataclasses.replace(
    CLIPURE_COS,
    name="clipure-cos@short",
    settings={**CLIPURE_COS.settings, "step": 0.05},
    deviations=("the step is 0.05 instead of 30, and never leaps over the null texts", *CLIPURE_COS.deviations),
)
"""Steps of 3 degrees: the published one turns an embedding by 88 degrees, over the null texts and back again."""
