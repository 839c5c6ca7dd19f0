"""Class lists of the published datasets, pinned: a label is a place in one of them, whatever order a disk has."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError


@functools.cache
def _lists() -> Mapping[str, Any]:
    lists: Mapping[str, Any] = json.loads(Path(__file__).with_name("class_lists.json").read_text(encoding="utf-8"))
    return lists


def class_names(name: str) -> tuple[str, ...]:
    """Return a dataset's raw class names, in the order of the labels that torchvision gives."""
    return tuple(_lists()[name]["names"])


def hub_class_names(name: str) -> tuple[str, ...]:
    """Return the raw class names in the order of the labels in the hub's shards; "" is a class that is left out."""
    entry = _lists()[name]
    return tuple(entry.get("hub_names", entry["names"]))


def normalised(name: str) -> str:
    """Return a class name's letters and digits in lower case: what its spellings have in common."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Labels:
    """The places of a dataset's classes by name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places = {normalised(raw): place for place, raw in enumerate(class_names(name))}

    def __contains__(self, raw: object) -> bool:
        return isinstance(raw, str) and normalised(raw) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def of(self, raw: str, where: Path) -> int:
        """Return the place of a class; raise UserError, with the file or folder that names it, where it is none."""
        if raw not in self:
            raise UserError(
                f"{where} names the class {raw!r}, which {self._name} does not have: is this another dataset, or was"
                f" something put there? Its classes are {', '.join(class_names(self._name)[:3])} and so on"
            )
        return self._places[normalised(raw)]

    def of_numbers(self, names: Sequence[str], where: Path) -> list[int]:
        """Return the place of each class of a list that a file numbers; raise UserError unless the list is whole."""
        places = [self.of(raw, where) for raw in names]
        if sorted(places) != list(range(len(self))):
            raise UserError(
                f"{where} numbers {len(names)} classes, {len(set(places))} of them different, and {self._name} has"
                f" {len(self)}: the file is damaged or of another version; fetch it anew"
            )
        return places
