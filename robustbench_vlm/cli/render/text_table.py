"""Text tables for any width. Columns that do not fit move to separate lines, and no text is cut."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from robustbench_vlm.cli.render.output import Line
from robustbench_vlm.core.text import terminal_text

_GAP = "  "

Row = Mapping[str, str]


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    If the table is too wide, some columns are shown on separate lines: first each of `groups`, then `name`.
    """

    groups: tuple[str, ...]
    """The first columns on separate lines. Rows with equal values in these columns share one heading."""
    name: str
    """The last column on a separate line, which is above the row."""
    numbers: tuple[str, ...]
    """Columns that are aligned to the right and always stay in the table."""
    notes: str = ""
    """A column with long texts. If the table is too wide, each text is on a line below its row."""


@dataclass(frozen=True)
class _Layout:
    headings: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    below: str


def table(rows: Sequence[Row], columns: Columns, width: int) -> list[Line]:
    """Return the lines of a table that is at most `width` terminal cells wide, if possible.

    Columns that are empty in every row are left out.
    """
    rows = [{key: terminal_text(value) for key, value in row.items()} for row in rows]
    filled = [
        key
        for key in (*columns.groups, columns.name, *columns.numbers, columns.notes)
        if any(row.get(key) for row in rows)
    ]
    layouts = [_kept(layout, filled) for layout in _layouts(columns)]
    layout = next((each for each in layouts if _width(rows, each) <= width), layouts[-1])
    return list(_lines(rows, layout, columns.numbers, width))


def wrapped(text: str, width: int, *, indent: str = "") -> list[Line]:
    """Return a sentence as lines of at most `width` terminal cells.

    Words are never split. Lines after the first begin with `indent`.
    """
    lines = textwrap.wrap(
        terminal_text(text),
        max(1, width),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [Line(line) for line in lines]


def _layouts(columns: Columns) -> list[_Layout]:
    groups, name, numbers, notes = columns.groups, columns.name, columns.numbers, columns.notes
    return [
        _Layout((), (*groups, name, *numbers, notes), ""),
        _Layout((), (*groups, name, *numbers), notes),
        _Layout((groups,), (name, *numbers), notes),
        _Layout((groups, (name,)), numbers, notes),
    ]


def _kept(layout: _Layout, filled: Sequence[str]) -> _Layout:
    headings = tuple(tuple(key for key in level if key in filled) for level in layout.headings)
    return _Layout(
        headings=tuple(level for level in headings if level),
        columns=tuple(key for key in layout.columns if key in filled),
        below=layout.below if layout.below in filled else "",
    )


def _width(rows: Sequence[Row], layout: _Layout) -> int:
    return sum(_widths(rows, layout).values()) + len(_GAP) * (len(layout.columns) - 1 + len(layout.headings))


def _widths(rows: Sequence[Row], layout: _Layout) -> dict[str, int]:
    return {key: max(cell_len(text) for text in [key, *(row.get(key, "") for row in rows)]) for key in layout.columns}


def _lines(rows: Sequence[Row], layout: _Layout, numbers: Sequence[str], width: int) -> Iterator[Line]:
    widths, indent = _widths(rows, layout), _GAP * len(layout.headings)
    yield Line(indent + _joined({key: key for key in widths}, widths, numbers), "bold")
    headed: list[str] = []
    for row in rows:
        for depth, level in enumerate(layout.headings):
            heading = _GAP * depth + " / ".join(row[key] for key in level if row.get(key))
            if headed[depth : depth + 1] != [heading]:
                headed[depth:] = [heading]
                yield Line(heading, "bold" if depth == 0 else "")
        yield Line(indent + _joined(row, widths, numbers))
        if layout.below and row.get(layout.below):
            note = wrapped(f"! {row[layout.below]}", max(width - len(indent + _GAP), 20), indent=_GAP)
            yield from (Line(indent + _GAP + line.text, "yellow") for line in note)


def _joined(row: Row, widths: Mapping[str, int], numbers: Sequence[str]) -> str:
    cells = []
    for key, width in widths.items():
        text = row.get(key, "")
        blanks = " " * (width - cell_len(text))
        cells.append(blanks + text if key in numbers else text + blanks)
    return _GAP.join(cells).rstrip()
