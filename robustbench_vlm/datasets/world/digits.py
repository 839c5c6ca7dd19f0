"""Handwriting: each digit as a few strokes whose points, slant and width vary with the sample."""

import torch
from torch import Tensor

from robustbench_vlm import randomness
from robustbench_vlm.datasets.world.shapes import segment_distance

_POINTS = 14
STROKES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((.0, -.8), (-.4, -.6), (-.52, 0.), (-.4, .6), (0., .8), (.4, .6), (.52, 0.), (.4, -.6), (0., -.8)),
    ((-.28, -.5), (.06, -.8), (.06, .8)),
    ((-.45, -.5), (-.2, -.78), (.2, -.78), (.45, -.45), (.3, -.05), (-.5, .8), (.5, .8)),
    ((-.45, -.65), (0., -.8), (.42, -.5), (.3, -.15), (-.1, 0.), (.35, .15), (.46, .5), (.05, .8), (-.48, .65)),
    ((.1, -.8), (-.5, .3), (.5, .3), (.22, .3), (.22, -.25), (.22, .8)),
    ((.45, -.8), (-.35, -.8), (-.42, -.05), (.1, -.2), (.46, .15), (.4, .6), (0., .8), (-.46, .65)),
    ((.3, -.8), (-.15, -.5), (-.42, .1), (-.38, .6), (0., .8), (.4, .6), (.42, .2), (.1, 0.), (-.36, .2)),
    ((-.48, -.78), (.48, -.78), (.15, -.1), (-.15, .8)),
    ((0., -.02), (-.36, -.3), (-.3, -.7), (0., -.8), (.3, -.7), (.36, -.3), (0., -.02), (.42, .35), (.3, .72),
     (0., .8), (-.3, .72), (-.42, .35), (0., -.02)),
    ((.38, -.2), (0., .02), (-.38, -.2), (-.38, -.6), (0., -.8), (.36, -.6), (.4, -.2), (.3, .3), (.1, .8)),
)


def digit_distance(digit: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signed distance to each digit's ink, (B, 32, 32), and how soft its border is, (B, 1, 1) in pixels."""
    random = randomness.uniform(keys, 0, (6,)).view(-1, 6, 1)
    padded = [(*stroke, *[stroke[-1]] * (_POINTS - len(stroke))) for stroke in STROKES]
    points = torch.tensor(padded)[digit]
    wobble = (randomness.uniform(keys, 1, (_POINTS, 2)) - 0.5) * 0.2
    # A stroke's repeated last point must not wobble away from itself.
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
