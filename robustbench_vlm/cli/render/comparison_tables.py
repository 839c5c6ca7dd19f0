"""Comparisons as text: a table for the terminal, or Markdown, LaTeX, CSV and HTML."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.cells import cell_len

from robustbench_vlm.cli.render import output
from robustbench_vlm.cli.render.output import Line
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.comparison import export as formats
from robustbench_vlm.comparison import tables
from robustbench_vlm.comparison.compare import ROBUST, Comparison
from robustbench_vlm.comparison.export import Field, Sheet
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.registry import unknown

_TABLE = "table"
_WRITERS: Mapping[str, Callable[[Comparison, bool], str]] = {
    "markdown": lambda found, intervals: formats.markdown(tables.report(found)),
    "latex": lambda found, intervals: formats.latex(tables.paper_report(found, intervals=intervals)),
    "csv": lambda found, intervals: formats.csv_table(tables.csv_rows(found)),
    "html": lambda found, intervals: formats.html(tables.report(found)),
}
"""For each format, the function that makes the text of a comparison. Its second argument is false if LaTeX has no
intervals."""
_BY_SET = Columns(("dataset",), "model", ("robust", "clean"))
_FILE_WIDTH = 100
"""Width in characters of a table that is written to a file."""


def check_format(name: str) -> None:
    """Raise UserError for an unknown format."""
    if name != _TABLE and name not in _WRITERS:
        raise UserError(unknown("format", name, [_TABLE, *_WRITERS]))


def show(found: Comparison, format: str, out: Path | None, *, intervals: bool, as_json: bool) -> None:
    """Print a comparison in the given format, or write it to the file `out`.

    If `intervals` is false, the LaTeX table has no intervals.

    If `as_json` is true, a JSON document is printed in place of the text. If `out` is also given, the file still gets
    the comparison in the given format.
    """
    if out is not None:
        write_text(out, _text(found, format, intervals))
        output.note(f"wrote {out}", quiet=as_json)
    if as_json:
        output.show_document(found.to_json())
    elif out is None and format == _TABLE:
        output.show(lines(found, output.width()))
    elif out is None:
        output.show(Line(line) for line in _text(found, format, intervals).splitlines())


def lines(found: Comparison, width: int) -> list[Line]:
    """Return the lines of a comparison: means, datasets, paired tests, the stages that broke samples, and curves."""
    footer = (*tables.legend(found, "*"), *(f"note: {note}" for note in tables.notes(found)))
    sheets = [tables.differences(found, ROBUST), tables.differences(found, "clean")] if found.pairs else []
    return [
        *wrapped(tables.about(found), width),
        *_sheet_lines(tables.means(found), width),
        *_heading("Datasets", width),
        *table(list(_set_rows(found)), _BY_SET, width),
        *(line for sheet in sheets for line in _sheet_lines(sheet, width)),
        *_sheet_lines(tables.broken_by(found), width),
        *_sheet_lines(tables.curves(found), width),
        Line(""),
        *(line for sentence in footer for line in wrapped(sentence, width, indent="  ")),
    ]


def _text(found: Comparison, format: str, intervals: bool) -> str:
    if format != _TABLE:
        return _WRITERS[format](found, intervals)
    return "".join(f"{line.text}\n" for line in lines(found, _FILE_WIDTH))


def _heading(title: str, width: int) -> list[Line]:
    return [Line(""), *(Line(line.text, "bold") for line in wrapped(title, width))]


def _sheet_lines(sheet: Sheet, width: int) -> list[Line]:
    first, *numbers = sheet.header
    starred = [any(field.best for field in column) for column in zip(*sheet.rows, strict=True)]
    rows = [
        {key: _starred(field, in_column) for key, field, in_column in zip(sheet.header, row, starred, strict=True)}
        for row in sheet.rows
    ]
    found = table(rows, Columns((), first, tuple(numbers)), width)
    if any(cell_len(line.text) > width for line in found):
        sentences = [f"{row[first]}: {', '.join(f'{key} {row[key]}' for key in numbers)}" for row in rows]
        found = [line for sentence in sentences for line in wrapped(_close(sentence), width, indent="  ")]
    return [*_heading(sheet.title, width), *found]


def _set_rows(found: Comparison) -> Iterator[Row]:
    for name in found.datasets:
        best = {measure: found.best(measure, name) for measure in (ROBUST, "clean")}
        for model in found.models:
            fields = {
                measure: Field(_accuracy(getattr(model.datasets[name], measure)), model.name in best[measure])
                for measure in best
            }
            numbers = {measure: _starred(field) for measure, field in fields.items()}
            yield {"dataset": tables.label(found, name), "model": model.name, **numbers}


def _close(text: str) -> str:
    """Return a table field without the spaces that align the digits of its column."""
    return re.sub(r" +(?=[ ,]|$)", "", text)


def _starred(field: Field, in_column: bool = True) -> str:
    return f"{field.text}{'*' if field.best else ' '}" if in_column else field.text


def _accuracy(accuracy: Accuracy) -> str:
    """Return an accuracy with its interval, without brackets so that it fits into 40 columns."""
    return tables.shown(accuracy).translate({ord("("): None, ord(")"): None})
