"""Maps of the image regions that support the predicted class: attention rollout with the gradients of tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.fast_resnet import FoldedResNet

_SMALL = 1e-8
_CLIPPED = 0.99
_LEVELS = 16384
"""Maps are rounded to multiples of 1 / `_LEVELS`. Resized maps have regions of one value. Without rounding, the last
bits of these values, and so the comparison with a quantile, would depend on the batch size.
"""
_EARLIER, _LAST = 0.5, 1.0
"""The weights of the last two blocks of a transformer in their mean."""


def relevance_maps(encoder: Callable[[Tensor], Tensor], images: Tensor, text_features: Tensor) -> Tensor:
    """Return a map for each image, float32 (N, H, W) in [0, 1], without a gradient.

    A region has a high value if its tokens increase the logit of the predicted class. `encoder` is the image encoder of
    a model, `images` is float32 (N, 3, H, W) in [0, 1], and `text_features` is (C, D) of norm 1. Raises UserError if
    the image encoder is neither a vision transformer nor a ResNet of open_clip.
    """
    visual = getattr(encoder, "visual", encoder)
    blocks, is_transformer = _observed_blocks(visual)
    with torch.enable_grad(), _inputs_of(blocks) as inputs:
        embedded = functional.normalize(encoder(images.detach().requires_grad_()), dim=-1)
        best = (embedded @ text_features.T).amax(dim=1).sum()
        gradients = torch.autograd.grad(best, inputs)
    with torch.no_grad():
        if is_transformer:
            found = _rollout(blocks, [tokens.detach() for tokens in inputs], gradients)
        else:
            found = torch.relu((inputs[0].detach() * gradients[0]).sum(dim=1))
        return _upsampled(found, images)


def _observed_blocks(visual: Any) -> tuple[list[nn.Module], bool]:
    """Return the modules whose inputs are the tokens, and whether the encoder is a vision transformer."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        return list(visual.transformer.resblocks)[-2:], True
    if isinstance(visual, FoldedResNet):
        # The last feature map is one pixel, so the map before it is used.
        return [list(visual.blocks)[-1]], False
    if isinstance(visual, ModifiedResNet):
        return [visual.attnpool], False
    raise UserError(
        f"the image encoder is a {type(visual).__name__}, but this test-time defense needs the tokens of a vision"
        " transformer or a ResNet of open_clip: choose another model, or a defense such as r-tpt"
    )


@contextmanager
def _inputs_of(blocks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the first input of each module in its next call."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0])

    handles = [block.register_forward_pre_hook(keep) for block in blocks]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _rollout(blocks: list[Any], inputs: list[Tensor], gradients: tuple[Tensor, ...]) -> Tensor:
    """Return the attention of the class token to the patches through the last two blocks, float32 (N, S, S)."""
    attentions = [_attention(*each) for each in zip(blocks, inputs, gradients, strict=True)]
    # A transformer with one block has no earlier attention, so its only attention is used twice.
    earlier, last = attentions[0], attentions[-1]
    mean = _rows_to_one((_EARLIER * earlier + _LAST * last) / (_EARLIER + _LAST))
    patches = (last @ mean)[:, 0, 1:]
    side = round(patches.shape[1] ** 0.5)
    return patches.reshape(len(patches), side, side)


def _attention(block: Any, tokens: Tensor, gradient: Tensor) -> Tensor:
    """Return the attention of a block, (N, T, T), whose columns are weighted by the relevance of the tokens."""
    batch_first = block.attn.batch_first
    normed = block.ln_1(tokens)
    heads = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)[1]
    if not batch_first:
        tokens, gradient = tokens.transpose(0, 1), gradient.transpose(0, 1)
    weights = torch.relu((tokens * gradient).sum(dim=2))
    weights = weights / (weights.sum(dim=1, keepdim=True) + _SMALL)
    return _rows_to_one(heads.mean(dim=1) * weights[:, None] + torch.eye(weights.shape[1]).to(weights))


def _rows_to_one(matrix: Tensor) -> Tensor:
    return matrix / (matrix.sum(dim=2, keepdim=True) + _SMALL)


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    """Limit maps (N, S, S) to their quantile 0.99, scale them to [0, 1] and resize them to the size of the images."""
    flat = maps.flatten(1)
    flat = torch.minimum(flat, flat.quantile(_CLIPPED, dim=1, keepdim=True))
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    scaled = ((flat - low) / (high - low + _SMALL)).view_as(maps)
    resized = functional.interpolate(scaled[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (resized * _LEVELS).round() / _LEVELS
