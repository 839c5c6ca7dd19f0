"""Draw scenes as images of 32 x 32 pixels, with arithmetic that gives the same pixels on every machine."""

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets.world import vocabulary as words
from robustbench_vlm.datasets.world.digits import digit_distance
from robustbench_vlm.datasets.world.patterns import background_image, texture_mask
from robustbench_vlm.datasets.world.scenes import Scenes
from robustbench_vlm.datasets.world.shapes import signed_distance

SIDE = 32
MAX_OBJECTS = 5
_PIXEL = 2 / SIDE
_OUTLINE = 0.14
_RADII = {1: (0.36, 0.46), 2: (0.32, 0.4), 3: (0.29, 0.36), 4: (0.27, 0.32), 5: (0.25, 0.29)}
_LARGE, _PAIR = (0.72, 0.92), (0.36, 0.46)
# Rotations of objects. Each row has the cosine and the sine of an angle between -11 and 11 degrees.
_TURNS = torch.tensor(
    [[round(1 / (1 + t * t) ** 0.5, 6), round(t / (1 + t * t) ** 0.5, 6)] for t in [step / 40 for step in range(-8, 9)]]
)


def draw(scenes: Scenes) -> Tensor:
    """Return the images of B scenes as uint8 [B, 3, 32, 32]."""
    keys = randomness.derive(scenes.keys, "drawing")
    x, y = _grid()
    colours = torch.tensor(words.COLOUR_VALUES)
    tone = _tone(scenes, keys, colours)
    empty = background_image(scenes["background"], tone, keys, x, y)
    image = empty
    for slot in range(MAX_OBJECTS):
        image = _with_object(image, scenes, keys, slot)
    image = _with_digit(image, scenes, keys)
    faint = (scenes["faint"] == 1).view(-1, 1, 1, 1)
    image = torch.where(faint, empty + (image - empty) * 0.45, image)
    return _photograph(image, scenes, keys)


def _grid() -> tuple[Tensor, Tensor]:
    centres = (torch.arange(SIDE) * 2 + 1).to(torch.float32) / SIDE - 1
    return centres.view(1, 1, SIDE).expand(1, SIDE, SIDE), centres.view(1, SIDE, 1).expand(1, SIDE, SIDE)


def luminance(colour: Tensor) -> Tensor:
    """Return the brightness of RGB colours. colour: float32 [..., 3] in [0, 1]. Returns float32 [...] in [0, 1]."""
    return colour[..., 0] * 0.3 + colour[..., 1] * 0.55 + colour[..., 2] * 0.15


def _tone(scenes: Scenes, keys: Tensor, colours: Tensor) -> Tensor:
    """Choose the colour of each background as float32 [B, 3] in [0, 1].

    Of eight random grey levels, the one whose brightness differs most from the objects is chosen. A small random tint
    is then added.
    """
    levels = randomness.uniform(keys, 0, (8,)) * 0.8 + 0.1
    gap = torch.full_like(levels, 1e9)
    for attribute in ("colour", "second_colour"):
        value = scenes[attribute]
        away = (levels - luminance(colours[value.clamp_min(0)])[:, None]).abs()
        gap = torch.minimum(gap, torch.where((value >= 0)[:, None], away, gap))
    level = levels.gather(1, gap.argmax(dim=1, keepdim=True))
    return (level + (randomness.uniform(keys, 1, (3,)) - 0.5) * 0.12).clamp(0, 1)


def _with_object(image: Tensor, scenes: Scenes, keys: Tensor, slot: int) -> Tensor:
    is_pair = scenes["relation"] >= 0
    objects = torch.where(is_pair, 2, scenes["count"])
    shape = torch.where(is_pair & (slot == 1), scenes["second_shape"], scenes["shape"])
    colour = torch.where(is_pair & (slot == 1), scenes["second_colour"], scenes["colour"])
    rows = (objects > slot).nonzero()[:, 0]
    if not len(rows):
        return image
    left, top, radius = (part[rows] for part in _layout(scenes, keys, slot))
    keys = randomness.derive(keys[rows], f"object {slot}")
    turn = _TURNS[randomness.integers(keys, 0, (1,), len(_TURNS))[:, 0]]
    x, y = _grid()
    off_x, off_y = (x - left) / radius, (y - top) / radius
    cosine, sine = turn[:, 0].view(-1, 1, 1), turn[:, 1].view(-1, 1, 1)
    own_x, own_y = off_x * cosine + off_y * sine, off_y * cosine - off_x * sine
    distance = torch.empty_like(own_x)
    for kind in shape[rows].unique().tolist():
        same = shape[rows] == kind
        distance[same] = signed_distance(kind, own_x[same], own_y[same])
    hollow = (scenes["outline"][rows] == 1).view(-1, 1, 1)
    distance = torch.where(hollow, distance.abs() - _OUTLINE, distance)
    cover = (0.5 - distance * radius / _PIXEL).clamp(0, 1).unsqueeze(1)
    paint = _paint(colour[rows], scenes["texture"][rows], keys, off_x * radius, off_y * radius)
    result = image.clone()
    result[rows] = image[rows] + (paint - image[rows]) * cover
    return result


def _layout(scenes: Scenes, keys: Tensor, slot: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the centre x, centre y and radius of one object in each scene, float32 [B, 1, 1] each.

    `slot` is the index of the object in its scene, from 0.
    """
    jitter = randomness.uniform(keys, 10 + slot, (3,))
    low = torch.full((len(scenes), 2), 0.0)
    for count, bounds in _RADII.items():
        low[scenes["count"] == count] = torch.tensor(bounds)
    low[scenes["size"] == 1] = torch.tensor(_LARGE)
    low[scenes["relation"] >= 0] = torch.tensor(_PAIR)
    radius = low[:, 0] + (low[:, 1] - low[:, 0]) * jitter[:, 2]
    cell = _cells(scenes, keys)[:, slot]
    column, row = (cell % 3 - 1).to(torch.float32), (cell // 3 - 1).to(torch.float32)
    wobble = (jitter[:, :2] - 0.5) * 0.12
    spread = torch.where(scenes["relation"] >= 0, 0.5, 0.58)
    spread = torch.where(scenes["size"] == 1, 0.0, spread)
    left, top = column * spread + wobble[:, 0], row * spread + wobble[:, 1]
    return left.view(-1, 1, 1), top.view(-1, 1, 1), radius.view(-1, 1, 1)


def _cells(scenes: Scenes, keys: Tensor) -> Tensor:
    """Return each object's cell in a 3 x 3 grid, int64 [B, 5]. Objects of one scene have different cells."""
    order = randomness.bits(keys, 20, 9).argsort(dim=1)[:, :MAX_OBJECTS]
    is_single = scenes["count"] == 1
    position = torch.where(scenes["position"] >= 0, scenes["position"], 4)
    order = torch.where(is_single[:, None], position[:, None], order)
    is_pair = scenes["relation"] >= 0
    first = torch.where(scenes["relation"] == 0, 3, 1)
    pair = torch.stack([first, 8 - first, first, first, first], dim=1)
    return torch.where(is_pair[:, None], pair, order)


def _paint(colour: Tensor, texture: Tensor, keys: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the objects' surfaces, float32 [B, 3, 32, 32] in [0, 1]. Each surface has a pattern of two colours."""
    base = torch.tensor(words.COLOUR_VALUES)[colour]
    base = (base + (randomness.uniform(keys, 1, (3,)) - 0.5) * 0.08).clamp(0, 1)
    bright = (luminance(base) > 0.4)[:, None]
    second = torch.where(bright, base * 0.3, base + (1 - base) * 0.65)
    mask = texture_mask(texture, keys, x, y).unsqueeze(1)
    return base[:, :, None, None] + (second - base)[:, :, None, None] * mask


def _with_digit(image: Tensor, scenes: Scenes, keys: Tensor) -> Tensor:
    rows = (scenes["digit"] >= 0).nonzero()[:, 0]
    if not len(rows):
        return image
    x, y = _grid()
    stream = randomness.derive(keys[rows], "digit")
    distance, softness = digit_distance(scenes["digit"][rows], stream, x, y)
    cover = (0.5 - distance / (_PIXEL * softness)).clamp(0, 1).unsqueeze(1)
    paint = torch.tensor(words.COLOUR_VALUES)[scenes["colour"][rows]][:, :, None, None]
    result = image.clone()
    result[rows] = image[rows] + (paint - image[rows]) * cover
    return result


def _photograph(image: Tensor, scenes: Scenes, keys: Tensor) -> Tensor:
    """Apply the light and camera noise to images, float32 [B, 3, 32, 32] in [0, 1], and round them to uint8."""
    strength = randomness.uniform(keys, 2, (2,))
    night = (0.45 + 0.15 * strength[:, :1]) * torch.tensor([0.85, 0.85, 1.15])
    day = (0.85 + 0.2 * strength[:, :1]).expand(-1, 3)
    light = torch.where((scenes["light"] == 0)[:, None], night, day)
    noise = randomness.normal(keys, 3, image.shape[1:]) * (strength[:, 1] * 0.03).view(-1, 1, 1, 1)
    return ((image * light[:, :, None, None] + noise).clamp(0, 1) * 255).round().to(torch.uint8)
