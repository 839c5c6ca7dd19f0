"""Prompt sources: class names and prompt templates of the published datasets, as one code base has them."""

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
class PromptRow:
    """Prompts of one dataset: its prompt templates, and the rule that turns a raw class name into a readable one."""

    prompt: Prompt
    rule: Callable[[str], str] = plain_words
    names: Mapping[str, str] = field(default_factory=dict)
    """Raw class name -> readable name, where the rule does not apply."""
    listed: tuple[str, ...] = ()
    """All readable names in the order of the labels; used instead of the rule if not empty."""
    one_class: tuple[str, ...] = ()
    """Raw classes that become one class, so that the task has fewer classes than the dataset has labels."""


@dataclass(frozen=True)
class Task:
    """Zero-shot task: readable class names and prompt templates."""

    classes: tuple[str, ...]
    prompt: Prompt
    merged: tuple[int, ...]
    """The class of each label of the dataset; () if they are the same."""


PromptSource = Mapping[str, PromptRow]
"""Dataset name -> its prompts."""


def read_facts(project: str) -> dict[str, Any]:
    """Return the class names and prompt templates copied from a project's code, by dataset name."""
    text = Path(__file__).with_name("facts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)[project]
    return found


def task_of(row: PromptRow, raw_classes: tuple[str, ...]) -> Task:
    """Return the zero-shot task for a dataset's raw class names, which are in the order of its labels."""
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
