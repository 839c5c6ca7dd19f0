"""The 31 image transformations of DBD: crops, fewer bits, JPEG compression, noise and filters, with gradients."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness
from robustbench_vlm.test_time.augmix import random_crops
from robustbench_vlm.test_time.base import straight_through
from robustbench_vlm.test_time.jpeg import compressed

_CROPS, _AREA = 16, (0.5, 1.0)
_ROUNDINGS = (torch.floor, torch.round, torch.ceil)
_INTERVAL = 32
"""The distance of grey levels after the reduction to 3 bits."""
_QUALITIES = (50, 60, 75)
_NOISES, _DEVIATION = 6, 0.1
_FILTERS = 3
VIEWS = _CROPS + len(_ROUNDINGS) + len(_QUALITIES) + _NOISES + _FILTERS
_RADIUS = 2
"""The filters use the 5 x 5 pixels around a pixel."""
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""OpenCV's Gaussian kernel of size 5 if no standard deviation is given."""


def transformed(keys: Tensor, images: Tensor) -> Tensor:
    """Return the transformed images of each image, float32 (B, 31, 3, H, W) in [0, 1].

    They are 16 random crops, 3 reductions to 3 bits, 3 JPEG compressions, 6 images with Gaussian noise, and a median, a
    mean and a Gaussian filter. `keys`, int64 (B,), decide the random numbers. `images` is float32 (B, 3, H, W).
    """
    draws = randomness.uniform(keys, 0, (_CROPS, 5)).to(images).flatten(0, 1)
    crops = random_crops(images.repeat_interleave(_CROPS, dim=0), draws, _AREA)
    noise = _DEVIATION * randomness.normal(keys, 1, (_NOISES, *images.shape[1:])).to(images)
    fixed = [
        *(reduced(images, rounding) for rounding in _ROUNDINGS),
        *(compressed(images, quality) for quality in _QUALITIES),
        median_filtered(images),
        _filtered(images, (1 / len(_BINOMIAL),) * len(_BINOMIAL)),
        _filtered(images, _BINOMIAL),
    ]
    noisy = (images[:, None] + noise).clamp(0, 1)
    return torch.cat([crops.unflatten(0, (len(images), _CROPS)), noisy, torch.stack(fixed, dim=1)], dim=1)


def reduced(images: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with 8 grey levels per channel. The gradient is the identity.

    As in the released code, the level 256 becomes 0, so that bright pixels can become black.
    """
    levels = rounding(255 * images / _INTERVAL) * _INTERVAL
    return straight_through(torch.where(levels > 255, 0, levels) / 255, images)


def median_filtered(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) whose pixels are the medians of 5 x 5 pixels. Pixels at the border are repeated."""
    padded = functional.pad(images, (_RADIUS,) * 4, mode="replicate")
    side = 2 * _RADIUS + 1
    return padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(dim=4).values


def _filtered(images: Tensor, kernel: tuple[float, ...]) -> Tensor:
    """Return images (B, 3, H, W) after a separable filter. The image is mirrored at the centres of border pixels."""
    padded = functional.pad(images, (_RADIUS,) * 4, mode="reflect")
    weights = images.new_tensor(kernel).view(1, 1, 1, -1).expand(3, -1, -1, -1)
    across = functional.conv2d(padded, weights, groups=3)
    return functional.conv2d(across, weights.transpose(2, 3), groups=3)
