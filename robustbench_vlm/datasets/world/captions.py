"""Random captions of scenes, and the attributes that each caption mentions."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.datasets.world import vocabulary as words
from robustbench_vlm.datasets.world.scenes import Scenes
from robustbench_vlm.datasets.world.vocabulary import ATTRIBUTES, column

_OPENINGS = ("a picture of", "a photo of", "an image of", "a drawing of", "this is", "there is", "", "a view of")
_THINGS = ("object", "object", "thing", "item", "figure")
_FAINT = ("faint", "pale", "low-contrast")
_LIGHTS = (("at night", "in the dark"), ("by day", "in daylight"))
_DIGITS = ("the number", "the digit", "a handwritten number", "a handwritten", "the figure")
_HOW_MANY = (1, 1, 1, 2, 2, 3, 4, len(ATTRIBUTES))
_DRAWS = 32

Option = TypeVar("Option")


class _Choice:
    """Choose words for one caption with a sequence of random numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)

    def of(self, options: Sequence[Option]) -> Option:
        return options[next(self._numbers) % len(options)]


def describe(scenes: Scenes, counter: int) -> tuple[list[str], Tensor]:
    """Return one caption per scene (B texts), and the attributes that each caption mentions.

    The mentioned attributes are bool [B, 14], one column per attribute of `vocabulary.ATTRIBUTES`. Each value of
    `counter` gives another caption of the same scene.
    """
    stream = randomness.derive(scenes.keys, "caption")
    draws = randomness.integers(stream, counter, (_DRAWS,), 2**20).tolist()
    texts, mentions = [], torch.zeros(len(scenes), len(ATTRIBUTES), dtype=torch.bool)
    for row, (values, numbers) in enumerate(zip(scenes.attributes.tolist(), draws, strict=True)):
        text, spoken = _caption(dict(zip(ATTRIBUTES, values, strict=True)), _Choice(numbers))
        texts.append(text)
        mentions[row, [column(attribute) for attribute in spoken]] = True
    return texts, mentions


def is_true_of(scenes: Scenes, mentions: Tensor) -> Tensor:
    """Return whether caption j is true for scene i, as bool [B, B] with rows i and columns j.

    mentions: bool [B, 14], the attributes that each caption mentions.
    """
    differs = scenes.attributes[:, None, :] != scenes.attributes[None, :, :]
    return ~(differs & mentions[None, :, :]).any(dim=2)


def article(text: str) -> str:
    """Return a noun phrase with its indefinite article."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def plural(noun: str) -> str:
    """Return the plural of a noun in the vocabulary."""
    if noun.endswith("fish"):
        return noun
    return f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"


def _caption(scene: dict[str, int], choice: _Choice) -> tuple[str, set[str]]:
    spoken = _choose_attributes(scene, choice)
    opening = choice.of(_OPENINGS)
    subject = _pair(scene, spoken, choice) if scene["relation"] >= 0 else _subject(scene, spoken, choice)
    tail = [f"in the {choice.of(words.POSITIONS[scene['position']])}"] if "position" in spoken else []
    if "background" in spoken:
        tail.append(f"on {article(choice.of(words.BACKGROUNDS[scene['background']]))} background")
    if "light" in spoken:
        tail.append(choice.of(_LIGHTS[scene["light"]]))
    return " ".join(part for part in (opening, subject, *tail) if part), spoken


def _choose_attributes(scene: dict[str, int], choice: _Choice) -> set[str]:
    silent = {"second_shape", "second_colour"} | {name for name in ("outline", "faint") if scene[name] != 1}
    known = [name for name, value in scene.items() if value >= 0 and name not in silent]
    ranked = sorted(known, key=lambda name: choice.of(range(2**20)))
    spoken = set(ranked[: choice.of(_HOW_MANY)])
    if scene["relation"] < 0:
        return spoken - {"count"} if "outline" in spoken else spoken
    kind = choice.of((("colour",), ("colour",), ("shape",), ("colour", "shape")))
    inside = {"relation", *kind, *(f"second_{name}" for name in kind)}
    around = spoken & {"background", "light"}
    return around | inside if choice.of(range(6)) else around


def _subject(scene: dict[str, int], spoken: set[str], choice: _Choice) -> str:
    if scene["digit"] >= 0:
        return _digit(scene, spoken, choice)
    before = [choice.of(words.SIZES[scene["size"]])] if "size" in spoken else []
    before += [choice.of(_FAINT)] if "faint" in spoken else []
    before += [choice.of(words.COLOURS[scene["colour"]])] if "colour" in spoken else []
    before += [choice.of(words.TEXTURES[scene["texture"]])] if "texture" in spoken else []
    noun = choice.of(words.SHAPES[scene["shape"]]) if "shape" in spoken else choice.of(_THINGS)
    if "count" in spoken:
        count = choice.of(words.NUMBERS[scene["count"]])
        return " ".join([count, *before, noun if scene["count"] == 1 else plural(noun)])
    if scene["count"] > 1:
        return " ".join([*before, plural(noun)])
    phrase = article(" ".join([*before, noun]))
    return f"an outline of {phrase}" if "outline" in spoken else phrase


def _digit(scene: dict[str, int], spoken: set[str], choice: _Choice) -> str:
    colour = choice.of(words.COLOURS[scene["colour"]]) if "colour" in spoken else ""
    faint = f"{choice.of(_FAINT)} " if "faint" in spoken else ""
    if "digit" not in spoken:
        return article(f"{faint}{colour} number".replace("  ", " ").strip())
    name = f"{choice.of(_DIGITS)} {choice.of(words.NUMBERS[scene['digit']])}"
    return f"{name} in {faint}{colour}" if colour else f"{name} in {faint}ink" if faint else name


def _pair(scene: dict[str, int], spoken: set[str], choice: _Choice) -> str:
    if "relation" not in spoken:
        return choice.of(("two things", "two objects", "a pair of objects"))
    sides = []
    for prefix in ("", "second_"):
        parts = [choice.of(words.COLOURS[scene[f"{prefix}colour"]])] if f"{prefix}colour" in spoken else []
        parts.append(
            choice.of(words.SHAPES[scene[f"{prefix}shape"]]) if f"{prefix}shape" in spoken else choice.of(_THINGS)
        )
        sides.append(article(" ".join(parts)))
    turned = choice.of((0, 1))
    first, second = sides[::-1] if turned else sides
    return f"{first} {words.RELATIONS[scene['relation']][turned]} {second}"
