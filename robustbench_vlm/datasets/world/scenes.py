"""Scenes. A scene is a row of attribute values for one image, chosen at random from the key of the sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets.world import vocabulary as words
from robustbench_vlm.datasets.world.vocabulary import ATTRIBUTES, column

SINGLE, SEVERAL, PAIR, DIGIT = "single", "several", "pair", "digit"
"""The families of scenes: one object, one to five equal objects, two objects in a relation, a handwritten digit."""

Values = Mapping[str, Sequence[int]]
"""Maps an attribute to its allowed values."""


def _all(vocabulary: Sequence[object]) -> tuple[int, ...]:
    return tuple(range(len(vocabulary)))


_USUAL_LIGHT = (0, 1, 1, 1)
_COMMON: Values = {
    "colour": _all(words.COLOURS),
    "background": _all(words.BACKGROUNDS),
    "light": _USUAL_LIGHT,
    "faint": (0,),
    "outline": (0,),
}
FAMILIES: Mapping[str, Values] = {
    SINGLE: {
        **_COMMON,
        "shape": _all(words.SHAPES),
        "texture": _all(words.TEXTURES),
        "size": (0, 1, 1),
        "position": _all(words.POSITIONS),
        "count": (1,),
    },
    SEVERAL: {**_COMMON, "shape": _all(words.SHAPES), "count": (1, 2, 3, 4, 5), "size": (0,)},
    PAIR: {
        **_COMMON,
        "shape": _all(words.SHAPES),
        "second_shape": _all(words.SHAPES),
        "second_colour": _all(words.COLOURS),
        "relation": _all(words.RELATIONS),
    },
    DIGIT: {**_COMMON, "digit": _all(words.NUMBERS)},
}
"""The allowed values of each attribute in each family. The items of a tuple are equally probable. A value that occurs
twice in a tuple is twice as probable.

If a family lacks an attribute, its scenes do not have this attribute."""


@dataclass(frozen=True)
class Scenes:
    """The attributes and random keys of B scenes. `scenes["colour"]` is one column of `attributes`, int64 [B]."""

    attributes: Tensor
    """The attributes of B scenes, int64 [B, 14]. Each column is an attribute of `vocabulary.ATTRIBUTES`. The value -1
    means that the scene does not have the attribute.
    """
    keys: Tensor
    """The random key of each scene, int64 [B]."""

    def __getitem__(self, attribute: str) -> Tensor:
        return self.attributes[:, column(attribute)]

    def __len__(self) -> int:
        return len(self.keys)


def sample_scenes(keys: Tensor, family: str, changes: Values, fixed: Sequence[Mapping[str, int]]) -> Scenes:
    """Return one random scene for each key. All scenes belong to one family. keys: int64 [B].

    `changes` replaces the allowed values of some attributes in all scenes. `fixed[i]` sets attribute values of scene i.
    """
    values = {**FAMILIES[family], **changes}
    stream = randomness.derive(keys, "scene")
    attributes = torch.full((len(keys), len(ATTRIBUTES)), -1, dtype=torch.int64)
    for attribute, allowed in values.items():
        where = column(attribute)
        choice = randomness.integers(stream, where, (1,), len(allowed))[:, 0]
        attributes[:, where] = torch.tensor(allowed)[choice]
    for row, settings in enumerate(fixed):
        for attribute, value in settings.items():
            attributes[row, column(attribute)] = value
    return Scenes(_consistent(attributes, stream), keys)


def _consistent(attributes: Tensor, stream: Tensor) -> Tensor:
    """Remove attributes that the image cannot show. attributes: int64 [B, 14]. stream: int64 [B], random keys.

    Small objects lose their texture and their outline. Objects that are drawn as an outline lose their texture. Only a
    small single object keeps its position. If both objects of a pair have the same colour, the second object gets
    another colour.
    """
    attributes = attributes.clone()
    is_small = attributes[:, column("size")] == 0
    is_single = attributes[:, column("count")] == 1
    attributes[is_small, column("texture")] = -1
    attributes[is_small | (attributes[:, column("outline")] == 1), column("texture")] = -1
    attributes[is_small, column("outline")] = 0
    attributes[~is_small | ~is_single, column("position")] = -1
    first, second = attributes[:, column("colour")], attributes[:, column("second_colour")]
    other = (first + 1 + randomness.integers(stream, 99, (1,), len(words.COLOURS) - 1)[:, 0]) % len(words.COLOURS)
    attributes[:, column("second_colour")] = torch.where(second == first, other, second)
    return attributes
