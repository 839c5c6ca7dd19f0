"""Lists of names and JSON documents as text, for `vlmbench list` and `vlmbench show`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from robustbench_vlm.cli.render.output import Line
from robustbench_vlm.cli.render.text_table import wrapped
from robustbench_vlm.core.text import terminal_text

_WORDS = 40
"""Largest number of characters of a short list item. Several short items are printed on one line."""


@dataclass(frozen=True)
class Entry:
    """One line of a list: the name of a model, attack or similar, and a summary.

    If the named thing cannot be loaded, for example because a plugin fails, `error` has the reason.
    """

    name: str
    summary: str
    error: str = ""


def entry_lines(listed: Sequence[Entry], width: int) -> list[Line]:
    """Return the lines of a list.

    The summaries are to the right of the names. If the names are wider than half of the line, they are below the names.
    """
    names = max((cell_len(terminal_text(entry.name)) for entry in listed), default=0) + 2
    is_next_to_name = 2 * names <= width
    indent = " " * names if is_next_to_name else "  "
    lines: list[Line] = []
    for entry in listed:
        name, style = terminal_text(entry.name), "yellow" if entry.error else ""
        sentence = [line.text for line in wrapped(entry.error or entry.summary, width - len(indent))]
        if is_next_to_name:
            name += " " * (names - cell_len(name)) + (sentence.pop(0) if sentence else "")
        lines += [Line(name.rstrip(), style), *(Line(indent + rest, style) for rest in sentence)]
    return lines


def document_lines(value: Any, width: int, depth: int = 0) -> list[Line]:
    """Return a document as indented lines, one for each field. Empty fields are left out."""
    indent = "  " * depth
    fields = value.items() if isinstance(value, Mapping) else [("-", item) for item in value]
    lines: list[Line] = []
    for key, item in fields:
        if item in ("", None, [], {}):
            continue
        label = key if key == "-" else f"{key}:"
        if isinstance(item, Mapping) or (isinstance(item, list) and any(map(_needs_lines, item))):
            lines += [Line(indent + label, "bold"), *document_lines(item, width, depth + 1)]
            continue
        text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
        lines += [Line(indent + line.text) for line in wrapped(f"{label} {text}", width - len(indent), indent="  ")]
    return lines


def _needs_lines(item: Any) -> bool:
    """Return whether an item of a list is a mapping or a long text, which needs separate lines."""
    return isinstance(item, Mapping) or len(str(item)) > _WORDS
