"""JPEG compression of batches of images, with gradients: the rounding of coefficients is straight-through."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.test_time.base import straight_through

_BLOCK = 8
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""Quantisation tables for quality 50 (ITU-T T.81, annex K.1)."""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""The conversions between RGB and YCbCr of JFIF."""


def compressed(images: Tensor, quality: int) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] after JPEG compression with a quality from 1 to 100.

    As in Pillow's default, colour has half the resolution (4:2:0). The results differ from libjpeg only by rounding,
    but a coefficient near the middle of two quantised values can change a whole block. The gradient treats every
    rounding as the identity.
    """
    height, width = images.shape[2:]
    extra = [-side % (2 * _BLOCK) for side in (width, height)]
    padded = functional.pad(255 * images, (0, extra[0], 0, extra[1]), mode="replicate")
    ycc = _rounded(torch.einsum("ij,bjhw->bihw", padded.new_tensor(_TO_YCC), padded))
    luminance = _coded(ycc[:, :1] - 128, _LUMINANCE, quality) + 128
    colour = _coded(_rounded(functional.avg_pool2d(ycc[:, 1:], 2)), _CHROMINANCE, quality)
    colour = colour[:, :, : -(-height // 2), : -(-width // 2)]
    colour = functional.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    decoded = torch.cat([each[:, :, :height, :width] for each in (luminance, colour)], dim=1)
    return (torch.einsum("ij,bjhw->bihw", padded.new_tensor(_TO_RGB), decoded) / 255).clamp(0, 1)


def _coded(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Return planes (B, C, H, W) after quantisation of their 8 x 8 blocks' cosine coefficients."""
    batch, channels, height, width = planes.shape
    shape = (batch, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    cosines, steps = _cosines().to(planes), _quantisation(table, quality).to(planes)
    blocks = planes.view(shape).transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T / steps
    return (cosines.T @ (_rounded(coefficients) * steps) @ cosines).transpose(3, 4).reshape(planes.shape)


def _rounded(values: Tensor) -> Tensor:
    return straight_through(values.round(), values)


def _quantisation(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    # libjpeg scales the tables in this way and limits the steps of baseline JPEG to 255.
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps: Tensor = (torch.tensor(table) * percent + 50) // 100
    return steps.clamp(1, 255)


@functools.cache
def _cosines() -> Tensor:
    """Return the orthonormal discrete cosine transform of 8 values, float64 (8, 8)."""
    numbers = torch.arange(_BLOCK, dtype=torch.float64)
    matrix: Tensor = torch.cos(math.pi / _BLOCK * numbers[:, None] * (numbers + 0.5)) * (2 / _BLOCK) ** 0.5
    matrix[0] /= 2**0.5
    return matrix
