"""The outlines of the shapes, and the signed distance of points to these outlines.

Only additions, products, quotients, square roots and comparisons are used. IEEE 754 defines their rounding, so all
machines draw equal images. Coordinates are in [-1, 1], and y points down.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Point = tuple[float, float]
Part = tuple[str, str, Sequence[float] | Sequence[Point]]


def _turn(count: int, radius: float, start: float = -90.0) -> list[Point]:
    angles = [math.radians(start + 360 * index / count) for index in range(count)]
    return [(round(radius * math.cos(angle), 5), round(radius * math.sin(angle), 5)) for angle in angles]


def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star(points: int, outer: float, inner: float) -> list[Point]:
    tips, dents = _turn(points, outer), _turn(points, inner, -90 + 180 / points)
    return [point for pair in zip(tips, dents, strict=True) for point in pair]


_CROSS = [
    (-0.32, -0.95),
    (0.32, -0.95),
    (0.32, -0.32),
    (0.95, -0.32),
    (0.95, 0.32),
    (0.32, 0.32),
    (0.32, 0.95),
    (-0.32, 0.95),
    (-0.32, 0.32),
    (-0.95, 0.32),
    (-0.95, -0.32),
    (-0.32, -0.32),
]
_ARROW = [(-0.95, -0.25), (0.05, -0.25), (0.05, -0.75), (0.95, 0.0), (0.05, 0.75), (0.05, 0.25), (-0.95, 0.25)]
_BOLT = [(0.25, -1.0), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1.0), (0.6, -0.25), (0.05, -0.25)]
_HOURGLASS = [(-0.7, -0.95), (0.7, -0.95), (0.12, 0.0), (0.7, 0.95), (-0.7, 0.95), (-0.12, 0.0)]

PARTS: tuple[tuple[Part, ...], ...] = (
    (("+", "disc", (0.0, 0.0, 0.9)),),
    (("+", "disc", (0.0, 0.0, 0.95)), ("-", "disc", (0.0, 0.0, 0.5))),
    (("+", "polygon", _box(-0.8, -0.8, 0.8, 0.8)),),
    (("+", "polygon", _box(-0.88, -0.88, 0.88, 0.88)), ("-", "polygon", _box(-0.45, -0.45, 0.45, 0.45))),
    (("+", "polygon", [(0.0, -0.9), (0.95, 0.75), (-0.95, 0.75)]),),
    (("+", "polygon", [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)]),),
    (("+", "polygon", _turn(6, 0.95, 0)),),
    (("+", "polygon", _star(5, 1.0, 0.42)),),
    (("+", "polygon", _CROSS),),
    (
        ("+", "disc", (-0.45, -0.35, 0.5)),
        ("+", "disc", (0.45, -0.35, 0.5)),
        ("+", "polygon", [(-0.9, -0.15), (0.0, -0.3), (0.9, -0.15), (0.0, 0.95)]),
    ),
    (("+", "disc", (0.0, 0.0, 0.95)), ("-", "disc", (0.5, -0.1, 0.8))),
    (("+", "disc", (0.0, 0.35, 0.6)), ("+", "polygon", [(0.0, -1.0), (0.56, 0.15), (-0.56, 0.15)])),
    (("+", "polygon", _ARROW),),
    (("+", "polygon", _BOLT),),
    (
        ("+", "polygon", [(0.0, -0.95), (0.95, -0.1), (-0.95, -0.1)]),
        ("+", "polygon", _box(-0.68, -0.1, 0.68, 0.9)),
        ("-", "polygon", _box(-0.2, 0.3, 0.2, 0.9)),
    ),
    (
        ("+", "polygon", [(0.0, -1.0), (0.6, -0.2), (-0.6, -0.2)]),
        ("+", "polygon", [(0.0, -0.6), (0.85, 0.55), (-0.85, 0.55)]),
        ("+", "polygon", _box(-0.18, 0.55, 0.18, 1.0)),
    ),
    (
        ("+", "disc", (-0.15, 0.5, 1.0)),
        ("&", "disc", (-0.15, -0.5, 1.0)),
        ("+", "polygon", [(0.45, 0.0), (1.0, -0.5), (1.0, 0.5)]),
    ),
    (
        ("+", "disc", (0.0, -0.1, 0.9)),
        ("-", "polygon", _box(-1.0, 0.05, 1.0, 1.2)),
        ("+", "polygon", _box(-0.3, 0.05, 0.3, 0.9)),
    ),
    (("+", "polygon", _HOURGLASS),),
    (
        ("+", "polygon", _box(-0.62, -1.0, -0.38, 1.0)),
        ("+", "polygon", _box(0.38, -1.0, 0.62, 1.0)),
        ("+", "polygon", _box(-0.5, -0.72, 0.5, -0.5)),
        ("+", "polygon", _box(-0.5, -0.11, 0.5, 0.11)),
        ("+", "polygon", _box(-0.5, 0.5, 0.5, 0.72)),
    ),
    (*(("+", "disc", (x, y, 0.38)) for x, y in _turn(5, 0.58)), ("-", "disc", (0.0, 0.0, 0.25))),
    (
        ("+", "disc", (-0.55, 0.0, 0.45)),
        ("-", "disc", (-0.55, 0.0, 0.2)),
        ("+", "polygon", _box(-0.15, -0.12, 1.0, 0.12)),
        ("+", "polygon", _box(0.45, 0.1, 0.62, 0.45)),
        ("+", "polygon", _box(0.8, 0.1, 0.97, 0.45)),
    ),
    (
        ("+", "disc", (-0.5, 0.15, 0.42)),
        ("+", "disc", (0.1, -0.15, 0.55)),
        ("+", "disc", (0.6, 0.2, 0.38)),
        ("+", "polygon", _box(-0.5, 0.1, 0.6, 0.57)),
    ),
    (
        ("+", "polygon", _box(-0.18, -1.0, 0.18, -0.3)),
        ("+", "polygon", [(-0.18, -0.5), (0.18, -0.5), (0.5, 0.0), (-0.5, 0.0)]),
        ("+", "polygon", _box(-0.5, 0.0, 0.5, 0.95)),
    ),
)
"""The discs and polygons that make up each shape of `vocabulary.SHAPES`. They are combined in order: each one is added
to the shape (+), subtracted from it (-) or intersected with it (&).
"""


def signed_distance(shape: int, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance of points to the border of a shape. The distance is negative inside the shape.

    shape: an index of `vocabulary.SHAPES`. x, y: float32 coordinates of equal size, in units of the shape's radius.
    Returns float32 of the size of `x`. If a shape has several parts, the value is a lower bound of the distance.
    """
    total: Tensor | None = None
    for operation, kind, numbers in PARTS[shape]:
        part = _disc(numbers, x, y) if kind == "disc" else _polygon(numbers, x, y)  # type: ignore[arg-type]
        if total is None:
            total = part
        elif operation == "+":
            total = torch.minimum(total, part)
        else:
            total = torch.maximum(total, -part if operation == "-" else part)
    assert total is not None
    return total


def segment_distance(x: Tensor, y: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Return the distance of points (x, y) to the line segment from `start` to `end`. All tensors are broadcast."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    off_x, off_y = x - start[0], y - start[1]
    length = (along_x * along_x + along_y * along_y).clamp_min(1e-12)
    share = ((off_x * along_x + off_y * along_y) / length).clamp(0, 1)
    off_x, off_y = off_x - along_x * share, off_y - along_y * share
    return (off_x * off_x + off_y * off_y).sqrt()


def _disc(numbers: Sequence[float], x: Tensor, y: Tensor) -> Tensor:
    left, top = x - numbers[0], y - numbers[1]
    return (left * left + top * top).sqrt() - numbers[2]


def _polygon(points: Sequence[Point], x: Tensor, y: Tensor) -> Tensor:
    nearest = torch.full_like(x, 1e9)
    is_inside = torch.zeros_like(x, dtype=torch.bool)
    for (start_x, start_y), (end_x, end_y) in zip(points, [*points[1:], points[0]], strict=True):
        along_x, along_y = end_x - start_x, end_y - start_y
        off_x, off_y = x - start_x, y - start_y
        share = ((off_x * along_x + off_y * along_y) / (along_x * along_x + along_y * along_y)).clamp(0, 1)
        rest_x, rest_y = off_x - share * along_x, off_y - share * along_y
        nearest = torch.minimum(nearest, rest_x * rest_x + rest_y * rest_y)
        is_left = off_y * along_x > off_x * along_y
        upward, downward = (y >= start_y) & (y < end_y), (y < start_y) & (y >= end_y)
        is_inside = is_inside ^ ((upward & is_left) | (downward & ~is_left))
    distance = nearest.sqrt()
    return torch.where(is_inside, -distance, distance)
