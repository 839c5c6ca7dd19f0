"""The shapes of the world as data, and their signed distances in exact arithmetic.

Only additions, products, quotients, square roots and comparisons are used, which IEEE 754 rounds alike everywhere, so
that a picture is the same on every machine. Coordinates: the unit square [-1, 1]^2, y pointing down.
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


_CROSS = [(-.32, -.95), (.32, -.95), (.32, -.32), (.95, -.32), (.95, .32), (.32, .32),
          (.32, .95), (-.32, .95), (-.32, .32), (-.95, .32), (-.95, -.32), (-.32, -.32)]
_ARROW = [(-.95, -.25), (.05, -.25), (.05, -.75), (.95, 0.), (.05, .75), (.05, .25), (-.95, .25)]
_BOLT = [(.25, -1.), (-.6, .15), (-.05, .15), (-.3, 1.), (.6, -.25), (.05, -.25)]
_HOURGLASS = [(-.7, -.95), (.7, -.95), (.12, 0.), (.7, .95), (-.7, .95), (-.12, 0.)]

PARTS: tuple[tuple[Part, ...], ...] = (
    (("+", "disc", (0., 0., .9)),),
    (("+", "disc", (0., 0., .95)), ("-", "disc", (0., 0., .5))),
    (("+", "polygon", _box(-.8, -.8, .8, .8)),),
    (("+", "polygon", _box(-.88, -.88, .88, .88)), ("-", "polygon", _box(-.45, -.45, .45, .45))),
    (("+", "polygon", [(0., -.9), (.95, .75), (-.95, .75)]),),
    (("+", "polygon", [(0., -1.), (.68, 0.), (0., 1.), (-.68, 0.)]),),
    (("+", "polygon", _turn(6, .95, 0)),),
    (("+", "polygon", _star(5, 1., .42)),),
    (("+", "polygon", _CROSS),),
    (("+", "disc", (-.45, -.35, .5)), ("+", "disc", (.45, -.35, .5)),
     ("+", "polygon", [(-.9, -.15), (0., -.3), (.9, -.15), (0., .95)])),
    (("+", "disc", (0., 0., .95)), ("-", "disc", (.5, -.1, .8))),
    (("+", "disc", (0., .35, .6)), ("+", "polygon", [(0., -1.), (.56, .15), (-.56, .15)])),
    (("+", "polygon", _ARROW),),
    (("+", "polygon", _BOLT),),
    (("+", "polygon", [(0., -.95), (.95, -.1), (-.95, -.1)]), ("+", "polygon", _box(-.68, -.1, .68, .9)),
     ("-", "polygon", _box(-.2, .3, .2, .9))),
    (("+", "polygon", [(0., -1.), (.6, -.2), (-.6, -.2)]), ("+", "polygon", [(0., -.6), (.85, .55), (-.85, .55)]),
     ("+", "polygon", _box(-.18, .55, .18, 1.))),
    (("+", "disc", (-.15, .5, 1.)), ("&", "disc", (-.15, -.5, 1.)),
     ("+", "polygon", [(.45, 0.), (1., -.5), (1., .5)])),
    (("+", "disc", (0., -.1, .9)), ("-", "polygon", _box(-1., .05, 1., 1.2)), ("+", "polygon", _box(-.3, .05, .3, .9))),
    (("+", "polygon", _HOURGLASS),),
    (("+", "polygon", _box(-.62, -1., -.38, 1.)), ("+", "polygon", _box(.38, -1., .62, 1.)),
     ("+", "polygon", _box(-.5, -.72, .5, -.5)), ("+", "polygon", _box(-.5, -.11, .5, .11)),
     ("+", "polygon", _box(-.5, .5, .5, .72))),
    (*(("+", "disc", (x, y, .38)) for x, y in _turn(5, .58)), ("-", "disc", (0., 0., .25))),
    (("+", "disc", (-.55, 0., .45)), ("-", "disc", (-.55, 0., .2)), ("+", "polygon", _box(-.15, -.12, 1., .12)),
     ("+", "polygon", _box(.45, .1, .62, .45)), ("+", "polygon", _box(.8, .1, .97, .45))),
    (("+", "disc", (-.5, .15, .42)), ("+", "disc", (.1, -.15, .55)), ("+", "disc", (.6, .2, .38)),
     ("+", "polygon", _box(-.5, .1, .6, .57))),
    (("+", "polygon", _box(-.18, -1., .18, -.3)), ("+", "polygon", [(-.18, -.5), (.18, -.5), (.5, 0.), (-.5, 0.)]),
     ("+", "polygon", _box(-.5, 0., .5, .95))),
)
"""One entry a shape, in the order of the vocabulary: parts united (+), cut away (-) or intersected (&) in turn."""


def signed_distance(shape: int, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance to a shape's border, negative inside, at points of any one shape of tensor.

    Exact outside a single part; a bound where parts overlap.
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
    """Return the distance of points to a line segment; everything broadcasts."""
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
