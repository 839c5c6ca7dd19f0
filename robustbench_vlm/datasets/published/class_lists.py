"""Fixed class lists of the published datasets. On every machine, a label is an index in its dataset's class list."""

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
    """Return a dataset's raw class names in the order of torchvision's labels."""
    return tuple(_lists()[name]["names"])


def hub_class_names(name: str) -> tuple[str, ...]:
    """Return the raw class names in the order of the labels in the Hub's tar files.

    If a class of the tar files is not evaluated, its name is "".
    """
    entry = _lists()[name]
    return tuple(entry.get("hub_names", entry["names"]))


def normalised(name: str) -> str:
    """Return the letters and digits of a class name in lower case, so that different spellings compare equal."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Labels:
    """Maps the class names of one dataset to class indices. Spelling variants are accepted (see `normalised`)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places = {normalised(raw): place for place, raw in enumerate(class_names(name))}

    def __contains__(self, raw: object) -> bool:
        return isinstance(raw, str) and normalised(raw) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def of(self, raw: str, where: Path) -> int:
        """Return the index of a class; raise UserError if the dataset does not have it.

        `where` is the file or folder that contains the name, for the error message.
        """
        if raw not in self:
            raise UserError(
                f"{where} has the class {raw!r}, which is not a class of {self._name}; expected class names such as"
                f" {', '.join(class_names(self._name)[:3])}: check that this is the right dataset, and remove what does"
                " not belong to it"
            )
        return self._places[normalised(raw)]

    def of_numbers(self, names: Sequence[str], where: Path) -> list[int]:
        """Return the class index of each name in `names`, the class list of the file `where`.

        Raises UserError if the list lacks a class or repeats one.
        """
        places = [self.of(raw, where) for raw in names]
        if sorted(places) != list(range(len(self))):
            raise UserError(
                f"{where} lists {len(names)} classes ({len(set(places))} different ones), expected the {len(self)}"
                f" classes of {self._name}: the file is damaged or belongs to another version; fetch it again"
            )
        return places
