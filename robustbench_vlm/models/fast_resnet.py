"""A fast form of open_clip's ResNet for small images, which computes the same function in half the time.

* Batch normalisation with fixed statistics is merged into the convolution before it.
* 1 x 1 convolutions are computed as matrix products.
* If the last feature map is one pixel, attention pooling has two tokens: the mean of the map and the pixel. The tokens
  differ only in their positional embedding, and the common part of their keys cancels in the softmax. Pooling then
  needs only one matrix product and one sigmoid per attention head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def folded(visual: nn.Module) -> nn.Module:
    """Return the fast form of an open_clip ResNet if its last feature map is one pixel.

    Other encoders are returned unchanged. The outputs of the fast form and of `visual` are equal up to rounding.
    Gradients reach the weights of `visual` if these weights require gradients. The fast form is computed from the
    current weights. Call this function again after the weights change.
    """
    from open_clip.modified_resnet import ModifiedResNet

    if not isinstance(visual, ModifiedResNet) or len(visual.attnpool.positional_embedding) != 2:
        return visual
    return FoldedResNet(visual)


class FoldedResNet(nn.Module):
    """The fast form of an open_clip `ModifiedResNet` whose last feature map is one pixel.

    The module maps normalised images, float32 [B, 3, H, W], to embeddings, float32 [B, D].
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.stem = _Layers([_Affine(*_fold(convolution, norm)) for convolution, norm in _pairs(visual)])
        layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        self.blocks = _Layers([_Block(block) for layer in layers for block in layer])  # type: ignore[union-attr]
        self.pool = _PointPool(visual.attnpool)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 [B, D], of normalised images, float32 [B, 3, H, W]."""
        *_, last = self.blocks
        embedded: Tensor = self.pool(last(self._maps(images)).flatten(1))
        return embedded

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images, float32 [B, D], and of T regions of each image, float32 [B, T, D].

        The regions are the pixels of the last feature map before its average pooling. The embedding of a region is the
        value vector of that pixel in attention pooling, as in MaskCLIP (arXiv:2112.01071). `images` is normalised,
        float32 [B, 3, H, W].
        """
        *_, last = self.blocks
        maps = self._maps(images)
        inner = last.inner(maps)
        embedded: Tensor = self.pool(last.outer(*last.reduced(inner, maps)).flatten(1))
        regions = last.outer(inner, maps).flatten(2).transpose(1, 2)
        return embedded, functional.linear(regions, self.pool.value, self.pool.value_bias)  # type: ignore[arg-type]

    def _maps(self, images: Tensor) -> Tensor:
        maps = images
        for number, layer in enumerate(self.stem):
            maps = functional.conv2d(maps, layer.weight, layer.bias, stride=1 if number else 2, padding=1).relu_()
        maps = functional.avg_pool2d(maps, 2)
        *blocks, _ = self.blocks
        for block in blocks:
            maps = block(maps)
        return maps


class _Layers(nn.ModuleList):
    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()


class _Affine(nn.Module):
    """The weight and the bias of a convolution. The weight of a 1 x 1 convolution is stored as a matrix."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        matrix = weight.shape[-2:] == (1, 1)
        order = torch.preserve_format if matrix else torch.channels_last
        self.register_buffer("weight", weight.flatten(1) if matrix else weight.contiguous(memory_format=order))
        self.register_buffer("bias", bias)


class _Block(nn.Module):
    """A bottleneck block: convolutions of 1 x 1, 3 x 3 and 1 x 1, and a shortcut."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.stride = int(block.stride)
        self.first, self.middle = _Affine(*_fold(block.conv1, block.bn1)), _Affine(*_fold(block.conv2, block.bn2))
        self.last = _Affine(*_fold(block.conv3, block.bn3))
        self.shortcut = None if block.downsample is None else _Affine(*_fold(block.downsample[1], block.downsample[2]))

    def forward(self, maps: Tensor) -> Tensor:
        return self.outer(*self.reduced(self.inner(maps), maps))

    def inner(self, maps: Tensor) -> Tensor:
        # In channels-last format, rows [B H W, C] and maps [B, C, H, W] are views of the same memory.
        inner = functional.linear(_rows(maps), self.first.weight, self.first.bias).relu_()
        inner = _maps(inner, maps.shape)
        return functional.conv2d(inner, self.middle.weight, self.middle.bias, padding=1).relu_()

    def reduced(self, inner: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        if self.stride > 1:
            return functional.avg_pool2d(inner, self.stride), functional.avg_pool2d(maps, self.stride)
        return inner, maps

    def outer(self, inner: Tensor, maps: Tensor) -> Tensor:
        passed = _rows(maps)
        if self.shortcut is not None:
            passed = functional.linear(passed, self.shortcut.weight, self.shortcut.bias + self.last.bias)
        else:
            passed = passed + self.last.bias
        return _maps(torch.addmm(passed, _rows(inner), self.last.weight.T).relu_(), maps.shape)


class _PointPool(nn.Module):
    """Attention pooling of a feature map that is one pixel x, with positional embeddings p0 and p1.

    The mean of the map is also x. The two tokens are therefore x + p0 and x + p1. The query is x + p0.
    """

    def __init__(self, pool: Any) -> None:
        super().__init__()
        heads, out = pool.num_heads, pool.c_proj.weight
        first, second = pool.positional_embedding
        # A softmax over two tokens is the sigmoid of the difference of their scores. Both keys contain x, so x is
        # not in the difference.
        key, value = pool.k_proj.weight @ (second - first), pool.v_proj.weight @ (second - first)
        root = (len(key) // heads) ** 0.5
        query = pool.q_proj.weight @ first + pool.q_proj.bias
        weights = {
            "score": (pool.q_proj.weight * key[:, None]).unflatten(0, (heads, -1)).sum(1) / root,
            "score_bias": (query * key).unflatten(0, (heads, -1)).sum(1) / root,
            "value": out @ pool.v_proj.weight,
            "value_bias": out @ (pool.v_proj.weight @ first + pool.v_proj.bias) + pool.c_proj.bias,
            "second": (out * value).unflatten(1, (heads, -1)).sum(2),
        }
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, rows: Tensor) -> Tensor:
        share = functional.linear(rows, self.score, self.score_bias).sigmoid()  # type: ignore[arg-type]
        return functional.linear(rows, self.value, self.value_bias) + functional.linear(share, self.second)  # type: ignore[arg-type]


def _pairs(visual: Any) -> list[tuple[Any, Any]]:
    return [(visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)]


def _fold(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.weight * factor.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factor


def _rows(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)
