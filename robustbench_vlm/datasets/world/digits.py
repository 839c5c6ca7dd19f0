"""Draw handwritten digits. A digit is a line through a few points. Points, slant and width differ between samples."""

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets.world.shapes import segment_distance

_POINTS = 14
STROKES: tuple[tuple[tuple[float, float], ...], ...] = (
    (
        (0.0, -0.8),
        (-0.4, -0.6),
        (-0.52, 0.0),
        (-0.4, 0.6),
        (0.0, 0.8),
        (0.4, 0.6),
        (0.52, 0.0),
        (0.4, -0.6),
        (0.0, -0.8),
    ),
    ((-0.28, -0.5), (0.06, -0.8), (0.06, 0.8)),
    ((-0.45, -0.5), (-0.2, -0.78), (0.2, -0.78), (0.45, -0.45), (0.3, -0.05), (-0.5, 0.8), (0.5, 0.8)),
    (
        (-0.45, -0.65),
        (0.0, -0.8),
        (0.42, -0.5),
        (0.3, -0.15),
        (-0.1, 0.0),
        (0.35, 0.15),
        (0.46, 0.5),
        (0.05, 0.8),
        (-0.48, 0.65),
    ),
    ((0.1, -0.8), (-0.5, 0.3), (0.5, 0.3), (0.22, 0.3), (0.22, -0.25), (0.22, 0.8)),
    ((0.45, -0.8), (-0.35, -0.8), (-0.42, -0.05), (0.1, -0.2), (0.46, 0.15), (0.4, 0.6), (0.0, 0.8), (-0.46, 0.65)),
    (
        (0.3, -0.8),
        (-0.15, -0.5),
        (-0.42, 0.1),
        (-0.38, 0.6),
        (0.0, 0.8),
        (0.4, 0.6),
        (0.42, 0.2),
        (0.1, 0.0),
        (-0.36, 0.2),
    ),
    ((-0.48, -0.78), (0.48, -0.78), (0.15, -0.1), (-0.15, 0.8)),
    (
        (0.0, -0.02),
        (-0.36, -0.3),
        (-0.3, -0.7),
        (0.0, -0.8),
        (0.3, -0.7),
        (0.36, -0.3),
        (0.0, -0.02),
        (0.42, 0.35),
        (0.3, 0.72),
        (0.0, 0.8),
        (-0.3, 0.72),
        (-0.42, 0.35),
        (0.0, -0.02),
    ),
    (
        (0.38, -0.2),
        (0.0, 0.02),
        (-0.38, -0.2),
        (-0.38, -0.6),
        (0.0, -0.8),
        (0.36, -0.6),
        (0.4, -0.2),
        (0.3, 0.3),
        (0.1, 0.8),
    ),
)


def digit_distance(digit: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's signed distance to the edge of the ink, float32 [B, 32, 32], and the softness of the edge.

    digit: int64 [B], from 0 to 9. keys: int64 [B], random keys. x, y: float32 [1, 32, 32], pixel centres in [-1, 1].
    The distance is negative inside the ink. The softness, float32 [B, 1, 1], is the number of pixels over which the ink
    fades into the background.
    """
    random = randomness.uniform(keys, 0, (6,)).view(-1, 6, 1)
    padded = [(*stroke, *[stroke[-1]] * (_POINTS - len(stroke))) for stroke in STROKES]
    points = torch.tensor(padded)[digit]
    wobble = (randomness.uniform(keys, 1, (_POINTS, 2)) - 0.5) * 0.2
    # Short strokes are padded with copies of their last point. All copies are moved by the same random offset.
    ends = torch.tensor([len(stroke) - 1 for stroke in STROKES])[digit]
    index = torch.minimum(torch.arange(_POINTS), ends[:, None])
    points = points + wobble.gather(1, index[:, :, None].expand(-1, -1, 2))
    width, height = 0.75 + 0.5 * random[:, 0], 0.85 + 0.3 * random[:, 1]
    down = points[:, :, 1] * height + (random[:, 4] - 0.5) * 0.15
    across = points[:, :, 0] * width - down * (random[:, 2] - 0.4) * 0.5 + (random[:, 5] - 0.5) * 0.3
    nearest = torch.full((len(digit), *x.shape[1:]), 1e9)
    for start in range(_POINTS - 1):
        corners = [(across[:, i].view(-1, 1, 1), down[:, i].view(-1, 1, 1)) for i in (start, start + 1)]
        nearest = torch.minimum(nearest, segment_distance(x, y, corners[0], corners[1]))
    ink = 0.07 + 0.13 * random[:, 3:4]
    softness = 1 + 4 * randomness.uniform(keys, 2, (1, 1))
    return nearest - ink, softness
