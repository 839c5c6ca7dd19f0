"""Prompt sources: the class names and prompt templates that one project's code uses for the published datasets."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_vlm.datasets.base import Prompt


def plain_words(raw: str) -> str:
    """Return a raw class name in lower case, with spaces for underscores, hyphens and slashes."""
    return raw.lower().replace("_", " ").replace("-", " ").replace("/", " ")


@dataclass(frozen=True)
class PromptRow:
    """The prompts of one dataset: prompt templates and readable class names."""

    prompt: Prompt
    rule: Callable[[str], str] = plain_words
    """A function that converts a raw class name, such as a folder name, to a readable class name."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The readable names of some classes, for which `rule` is not used. The keys are raw class names."""
    listed: tuple[str, ...] = ()
    """The readable names of all classes, in the order of the labels. If given, `rule` and `names` are not used."""
    one_class: tuple[str, ...] = ()
    """Raw class names, such as those of two kinds of faces. Classes in this list are merged into one class if their
    readable names are equal. The task then has fewer classes than the dataset.
    """


@dataclass(frozen=True)
class Task:
    """A zero-shot task: the readable class names and prompt templates of a dataset."""

    classes: tuple[str, ...]
    prompt: Prompt
    merged: tuple[int, ...]
    """The class index of the task for each label of the dataset. Several labels have the same class index if their
    classes are merged. () means that no classes are merged, so each label is its own class index.
    """


PromptSource = Mapping[str, PromptRow]
"""Prompts of datasets. The keys are the names of the datasets."""


def read_facts(project: str) -> dict[str, Any]:
    """Return the class names and prompt templates that were copied from a project's code, by dataset name."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)[project]
    return found


def task_of(row: PromptRow, raw_classes: tuple[str, ...]) -> Task:
    """Return the zero-shot task of a dataset. `raw_classes[label]` is the raw class name for a label."""
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
    return Task(tuple(names), row.prompt, () if same else tuple(merged))
