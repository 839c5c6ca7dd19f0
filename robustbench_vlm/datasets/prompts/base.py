"""Wordings: what a protocol calls the classes of the published data sets, and how it asks for them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_vlm.datasets.base import Prompt


def plain_words(raw: str) -> str:
    """Return a raw class name in lower case, with blanks for underscores, hyphens and slashes."""
    return raw.lower().replace("_", " ").replace("-", " ").replace("/", " ")


@dataclass(frozen=True)
class Row:
    """One data set: its template or templates, and how a raw class name becomes the name that is put into them."""

    prompt: Prompt
    rule: Callable[[str], str] = plain_words
    names: Mapping[str, str] = field(default_factory=dict)
    """Names that the rule does not give, by raw class name."""
    listed: tuple[str, ...] = ()
    """All names in the order of the labels, where there is a list instead of a rule."""
    one_class: tuple[str, ...] = ()
    """Raw classes that are one class here: the task has fewer classes than the data set has labels."""


@dataclass(frozen=True)
class Texts:
    """The classes of a task in their order."""

    classes: tuple[str, ...]
    prompt: Prompt
    merged: tuple[int, ...]
    """The class of each label of the data set; () where they are the same."""


Wording = Mapping[str, Row]
"""A row for each data set, by its name."""


def facts(project: str) -> dict[str, Any]:
    """Return the lists of names and templates that were read in a project's code, by data set."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)[project]
    return found


def texts_of(row: Row, raw_classes: tuple[str, ...]) -> Texts:
    """Return the classes that a row makes of a data set's raw class names, given in the order of its labels."""
    names: list[str] = []
    merged: list[int] = []
    listed = row.listed or tuple(row.names.get(raw) or row.rule(raw) for raw in raw_classes)
    for raw, name in zip(raw_classes, listed, strict=True):
        if raw in row.one_class and name in names:
            merged.append(names.index(name))
        else:
            merged.append(len(names))
            names.append(name)
    same = merged == list(range(len(names)))
    return Texts(tuple(names), row.prompt, () if same else tuple(merged))
