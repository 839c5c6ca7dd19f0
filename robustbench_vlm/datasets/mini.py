"""Datasets of the built-in track `mini`. The images of thirteen of these datasets are drawn by code.

A drawn image depends only on its dataset and sample id. The images show synthetic scenes, for example a striped circle
on a brick wall. The package `datasets.world` draws them. The classes of most drawn datasets are the values of one or
two attributes of a scene, for example the shapes or the backgrounds. The models of the track are fine-tuned on the
dataset "scenes". This dataset has classes for all these attributes, and no other dataset contains its images. One more
dataset has real images: the handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak 1998).
"""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.world import vocabulary as words
from robustbench_vlm.datasets.world.captions import article, plural
from robustbench_vlm.datasets.world.drawing import SIDE, draw
from robustbench_vlm.datasets.world.scenes import DIGIT, PAIR, SEVERAL, SINGLE, Values, sample_scenes

Classes = tuple[tuple[str, Mapping[str, int]], ...]
"""Pairs (class name, attribute values). All images of the class have these attribute values."""


@dataclass(frozen=True)
class Group:
    """Classes of a dataset whose images show one family of scenes, such as scenes with a single object."""

    family: str
    """"single", "several" (objects), "pair" (of objects) or "digit"."""
    changes: Values
    """The allowed values of some attributes, which replace the allowed values of the family. The keys are
    attributes."""
    classes: Classes


def _names(vocabulary: Sequence[Sequence[str]], attribute: str, pattern: str = "{}") -> Classes:
    return tuple((pattern.format(word[0]), {attribute: value}) for value, word in enumerate(vocabulary))


def _products(first: Classes, second: Classes, pattern: str = "{} {}") -> Classes:
    return tuple((pattern.format(a, b), {**one, **two}) for a, one in first for b, two in second)


def _counts(nouns: Classes) -> Classes:
    return tuple(
        (f"{words.NUMBERS[count][0]} {noun if count == 1 else plural(noun)}", {"count": count, **values})
        for noun, values in nouns
        for count in range(1, 6)
    )


def _relations(colours: Sequence[int]) -> Classes:
    return tuple(
        (
            f"{article(words.COLOURS[one][0])} object {name[0]} {article(words.COLOURS[two][0])} object",
            {"colour": one, "second_colour": two, "relation": relation},
        )
        for relation, name in enumerate(words.RELATIONS)
        for one in colours
        for two in colours
        if one != two
    )


def _one(classes: Classes) -> Classes:
    return tuple((article(name), values) for name, values in classes)


_SHAPES, _COLOURS = _names(words.SHAPES, "shape"), _names(words.COLOURS, "colour")
_TEXTURES, _BACKGROUNDS = _names(words.TEXTURES, "texture"), _names(words.BACKGROUNDS, "background")
_POSITIONS, _DIGITS = _names(words.POSITIONS, "position"), _names(words.NUMBERS, "digit")
_LIGHTS: Classes = (("at night", {"light": 0}), ("by day", {"light": 1}))
_LARGE: Values = {"size": (1,)}
_CALM: Values = {"size": (1,), "texture": (0,), "background": (0,), "light": (1,)}
_PAIR_COLOURS = (0, 2, 3, 5)
_ON = "{} on a {} background"

QUESTIONS: Mapping[str, tuple[Group, ...]] = {
    "shapes": (Group(SINGLE, _LARGE, _SHAPES),),
    "colours": (Group(SINGLE, _LARGE, _COLOURS),),
    "textures": (Group(SINGLE, _LARGE, _TEXTURES),),
    "backgrounds": (Group(SINGLE, _LARGE, _BACKGROUNDS),),
    "positions": (Group(SINGLE, {"size": (0,)}, _POSITIONS),),
    "counting": (Group(SEVERAL, {}, _counts((("object", {}),))),),
    "fine-grained": (Group(SINGLE, _LARGE, _products(_COLOURS, _SHAPES)),),
    "relations": (Group(PAIR, {}, _relations(_PAIR_COLOURS)),),
    "digits": (Group(DIGIT, {}, _DIGITS),),
    "day-night": (Group(SINGLE, {}, _LIGHTS),),
    "outlines": (Group(SINGLE, {**_LARGE, "outline": (1,)}, _SHAPES),),
    "low-contrast": (Group(SINGLE, {**_LARGE, "faint": (1,)}, _SHAPES),),
    "scenes": (
        Group(SINGLE, _CALM, _one(_products(_COLOURS, _SHAPES))),
        Group(SINGLE, {**_CALM, "background": (0, 1)}, _one(_products(_TEXTURES[1:], _SHAPES))),
        Group(SINGLE, {**_LARGE, "light": (1,)}, _one(_products(_SHAPES[::3], _BACKGROUNDS[1:], _ON))),
        Group(SINGLE, {"size": (0,), "light": (1,)}, _one(_products(_SHAPES[1::3], _POSITIONS, "{} in the {}"))),
        Group(SEVERAL, {"light": (1,)}, _counts(_SHAPES[2::3])),
        Group(PAIR, {}, _relations(_PAIR_COLOURS)),
        Group(DIGIT, {}, _products(_DIGITS, _COLOURS[::3], "the number {} in {}")),
        Group(SINGLE, _LARGE, _one(_products(_SHAPES[::2], _LIGHTS))),
    ),
}
"""The classes of each drawn dataset, as a tuple of `Group`s. The keys are the names of the datasets."""


class DrawnSource:
    """The drawn images of one dataset. Sample i has the label i modulo the number of classes."""

    def __init__(self, question: str, size: int) -> None:
        self._question, self._groups = question, QUESTIONS[question]
        self._classes = [(group, values) for group in self._groups for _, values in group.classes]
        self.ids = tuple(f"{number:06d}" for number in range(size))
        self.labels = tuple(number % len(self._classes) for number in range(size))

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at B indices as uint8 [B, 3, 32, 32]."""
        images = torch.empty(len(indices), 3, SIDE, SIDE, dtype=torch.uint8)
        for group in self._groups:
            rows = [row for row, index in enumerate(indices) if self._classes[self.labels[index]][0] is group]
            if rows:
                ids = [self.ids[indices[row]] for row in rows]
                fixed = [self._classes[self.labels[indices[row]]][1] for row in rows]
                keys = randomness.sample_keys(0, self._question, ids)
                images[rows] = draw(sample_scenes(keys, group.family, group.changes, fixed))
        return images


def _dataset(question: str, prompt: str, description: str, size: int = 1000) -> Dataset:
    return Dataset(
        name=question,
        classes=tuple(name for group in QUESTIONS[question] for name, _ in group.classes),
        prompt=prompt,
        source="robustbench_vlm.datasets.mini:DrawnSource",
        options={"question": question, "size": size},
        description=description,
        origin="drawn by robustbench_vlm from the sample id, MIT",
    )


SHAPES = _dataset("shapes", "a picture of a {}", "24 shapes with any colour, texture and surroundings")
COLOURS = _dataset("colours", "a picture of a {} object", "12 colours on any shape")
TEXTURES = _dataset("textures", "a picture of a {} object", "8 surface patterns on objects of any shape")
BACKGROUNDS = _dataset("backgrounds", "an object on a {} background", "8 surroundings of any object")
POSITIONS = _dataset("positions", "a picture of an object in the {}", "9 positions of a small object")
COUNTING = _dataset("counting", "a picture of {}", "one to five equal objects")
FINE_GRAINED = _dataset("fine-grained", "a picture of a {}", "288 combinations of colour and shape", 1152)
RELATIONS = _dataset("relations", "a picture of {}", "two objects, one of them left of the other or above it")
DIGITS = _dataset("digits", "a picture of the number {}", "ten digits in any handwriting and colour")
DAY_NIGHT = _dataset("day-night", "a picture of an object {}", "scenes by day or at night, which are the two classes")
OUTLINES = _dataset("outlines", "an outline of a {}", "domain shift: shapes as bare outlines")
LOW_CONTRAST = _dataset("low-contrast", "a faint {}", "domain shift: shapes with little contrast to the background")
SCENES = _dataset(
    "scenes",
    "a picture of {}",
    "the fine-tuning dataset, whose images vary in the attributes of all other drawn datasets",
    100_000,
)


class HandwrittenSource:
    """The 1797 digits of scikit-learn: 8 x 8 grey values from 0 to 16, enlarged to 32 x 32 pixels (bilinear)."""

    def __init__(self) -> None:
        rows = torch.tensor(_rows(), dtype=torch.int64)
        self._images = rows[:, :64].unflatten(1, (8, 8))
        self.ids = tuple(f"{number:04d}" for number in range(len(rows)))
        self.labels = tuple(rows[:, 64].tolist())

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at B indices as uint8 [B, 3, 32, 32]."""
        large = _enlarge(_enlarge(self._images[list(indices)]).transpose(1, 2)).transpose(1, 2)
        pixels = (large * 255 + 8 * 64) // (16 * 64)
        return pixels.to(torch.uint8).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def _rows() -> list[list[int]]:
    """Return 65 integers per sample: its 64 grey values and its digit.

    This function reads the data file of scikit-learn's load_digits. scikit-learn is not imported, because the import
    takes three seconds in every process.
    """
    library = find_spec("sklearn")
    assert library is not None and library.submodule_search_locations
    file = Path(library.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    return [[int(float(value)) for value in line.split(",")] for line in lines]


def _enlarge(images: Tensor) -> Tensor:
    """Interpolate images, int64 [B, 8, W], linearly to 32 rows. Return int64 [B, 32, W].

    The returned values are multiplied by 8, so that they are exact integers.
    """
    above = torch.cat([images[:, :1], images[:, :-1]], dim=1)
    below = torch.cat([images[:, 1:], images[:, -1:]], dim=1)
    rows = [3 * above + 5 * images, above + 7 * images, 7 * images + below, 5 * images + 3 * below]
    return torch.stack(rows, dim=2).flatten(1, 2)


HANDWRITTEN = Dataset(
    name="handwritten",
    classes=tuple(names[0] for names in words.NUMBERS),
    prompt="a picture of a handwritten {}",
    source="robustbench_vlm.datasets.mini:HandwrittenSource",
    split="all",
    description="real handwritten digits, scanned by NIST and reduced to 8 x 8 pixels",
    origin="scikit-learn's load_digits: UCI Optical Recognition of Handwritten Digits, test part, CC BY 4.0",
)
