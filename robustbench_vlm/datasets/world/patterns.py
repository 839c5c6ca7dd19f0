"""Patterns of backgrounds and textures, computed with operations that give the same result on every machine."""

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness


def _fraction(values: Tensor) -> Tensor:
    return values - values.floor()


def _wave(values: Tensor) -> Tensor:
    """Return a triangle wave with period 1 and values in [0, 1]."""
    return (2 * _fraction(values) - 1).abs()


def texture_mask(texture: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return a mask, float32 [B, H, W]. The mask is 1 where an object has the second colour of its texture.

    texture: int64 [B], indices of `vocabulary.TEXTURES`. -1 and 0 mean a surface without a pattern. keys: int64 [B],
    random keys. x, y: float32 [B, H, W], coordinates relative to the object's centre.
    """
    random = randomness.uniform(keys, 2, (3,)).view(-1, 3, 1, 1)
    period = 0.34 + 0.1 * random[:, 0]
    u, v = x / period + random[:, 1], y / period + random[:, 2]
    side = x.shape[-1] // 2
    cells = randomness.uniform(keys, 3, (side, side)) > 0.55
    dot_x, dot_y = _fraction(u) - 0.5, _fraction(v) - 0.5
    masks = (
        None,
        _fraction(v) > 0.5,
        _fraction(u) > 0.5,
        _fraction((u + v) * 0.7) > 0.5,
        (_fraction(u) > 0.5) ^ (_fraction(v) > 0.5),
        dot_x * dot_x + dot_y * dot_y < 0.1,
        (_fraction(u) < 0.3) | (_fraction(v) < 0.3),
        cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2),
    )
    result = torch.zeros_like(u, dtype=torch.bool)
    for number, mask in enumerate(masks):
        if mask is not None:
            result = torch.where((texture == number).view(-1, 1, 1), mask, result)
    return result.to(x.dtype)


def background_image(background: Tensor, tone: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the background of each scene, its colour with a pattern, as float32 [B, 3, H, W] in [0, 1].

    background: int64 [B], indices of `vocabulary.BACKGROUNDS`. tone: float32 [B, 3] in [0, 1], the colour.
    keys: int64 [B], random keys. x, y: float32 [1, H, W], pixel centres in [-1, 1].
    """
    keys = randomness.derive(keys, "background")
    random = randomness.uniform(keys, 0, (4,)).view(-1, 4, 1, 1)
    pattern = torch.zeros(len(keys), *x.shape[1:])
    for number, make in enumerate(_BACKGROUNDS):
        rows = (background == number).nonzero()[:, 0]
        if len(rows) and make is not None:
            pattern[rows] = make(keys[rows], random[rows], x, y)
    swing = torch.where(tone.mean(dim=1, keepdim=True) > 0.5, -1.0, 1.0)[:, :, None, None]
    return (tone[:, :, None, None] + swing * pattern.unsqueeze(1) * 0.3).clamp(0, 1)


def _fading(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (x * (2 * random[:, 0] - 1) + y * (random[:, 1] * 0.5 + 0.5)) * 0.75 + 0.5


def _brick(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    v = y / 0.38 + random[:, 0]
    u = x / 0.75 + random[:, 1] + (v.floor() - 2 * (v * 0.5).floor()) * 0.5
    return ((_fraction(v) < 0.17) | (_fraction(u) < 0.09)).to(x.dtype) * 1.2


def _starry(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (randomness.uniform(keys, 1, x.shape[1:]) > 0.95).to(x.dtype) * 1.8


def _tiled(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    u, v = x / 0.62 + random[:, 0], y / 0.62 + random[:, 1]
    return ((_fraction(u) > 0.5) ^ (_fraction(v) > 0.5)).to(x.dtype) * 0.7


def _cloudy(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    coarse = randomness.uniform(keys, 1, (5, 5))
    rows = _blend([coarse[:, index, None, :] for index in range(5)], y[:, :, :1])
    return _blend([rows[:, :, index, None] for index in range(5)], x[:, :1]) * 2 - 0.6


def _blend(values: list[Tensor], at: Tensor) -> Tensor:
    """Return values at the coordinates `at`, interpolated linearly from five `values` at -1, -1/2, 0, 1/2 and 1."""
    total = torch.zeros(1)
    for index, value in enumerate(values):
        total = total + value * (1 - (at * 2 + 2 - index).abs()).clamp_min(0)
    return total


def _horizon(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    height = (random[:, 0] - 0.5) * 0.6 + (random[:, 1] - 0.5) * 0.3 * x
    return (y > height).to(x.dtype) * 1.1


def _sandy(keys: Tensor, random: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (randomness.uniform(keys, 1, x.shape[1:]) - 0.3) * 1.1


_BACKGROUNDS = (None, _fading, _brick, _starry, _tiled, _cloudy, _horizon, _sandy)
