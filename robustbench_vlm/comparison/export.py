"""Export tables as Markdown, LaTeX, HTML and CSV.

Names in a table may come from submitted results, so each function escapes all texts for its format.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustbench_vlm.core.text import csv_text, latex_text, markdown_text, one_line

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Field:
    """One cell of a table."""

    text: str
    best: bool = False
    """Whether the text is bold."""


@dataclass(frozen=True)
class Sheet:
    """A table. The first column has names and is aligned left. The other columns have numbers and are aligned right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    last_apart: bool = False
    """True if the last row is a summary. A line separates it from the other rows."""
    label: str = ""
    r"""The LaTeX label without the prefix "tab:", or "" for a table without a label."""


@dataclass(frozen=True)
class Report:
    """Several tables with a title, a description and notes."""

    title: str
    about: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]


def markdown(report: Report) -> str:
    """Return a report as GitHub-flavoured Markdown."""
    lines = [f"## {markdown_text(report.title)}", "", markdown_text(report.about), ""]
    for sheet in report.sheets:
        lines += [f"### {markdown_text(sheet.title)}", "", _piped(map(markdown_text, sheet.header))]
        lines += [_piped([":--", *["--:"] * (len(sheet.header) - 1)])]
        lines += [_piped(map(_markdown_field, row)) for row in sheet.rows]
        lines.append("")
    return "\n".join([*lines, *(f"* {markdown_text(note)}" for note in report.notes)]).rstrip() + "\n"


def latex(report: Report) -> str:
    r"""Return the tables of a report as LaTeX.

    The tables need the LaTeX package booktabs. Title and notes are comments.
    """
    lines = [f"% {one_line(text)}" for text in (report.title, report.about, *report.notes)]
    lines.append(r"% \usepackage{booktabs}")
    for sheet in report.sheets:
        rows = [
            " & ".join([_latex_bold(row[0], latex_text(row[0].text)), *map(_latex_number, row[1:])]) + r" \\"
            for row in sheet.rows
        ]
        if sheet.last_apart:
            rows.insert(len(rows) - 1, r"\midrule")
        lines += [
            *("", r"\begin{table}", r"\centering", rf"\caption{{{latex_text(sheet.title)}}}"),
            *(rf"\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}", r"\toprule"),
            *(" & ".join(map(latex_text, sheet.header)) + r" \\", r"\midrule", *rows),
            *(r"\bottomrule", r"\end{tabular}"),
            *([rf"\label{{tab:{sheet.label}}}"] if sheet.label else []),
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def html(report: Report) -> str:
    """Return a report as one self-contained HTML page with a light and a dark colour scheme."""
    return f"{_template().render(report=report)}\n"


def csv_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Return rows as CSV. The keys of the first row are the header. All rows must have these keys."""
    return csv_text([rows[0], *([row[key] for key in rows[0]] for row in rows)])


def _markdown_field(field: Field) -> str:
    return f"**{markdown_text(field.text)}**" if field.best else markdown_text(field.text)


def _piped(fields: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(fields)} |"


def _latex_number(field: Field) -> str:
    """Return a field with an en dash in each range of numbers."""
    return _latex_bold(field, re.sub(r"(?<=[0-9])-(?=[0-9])", "--", latex_text(field.text)))


def _latex_bold(field: Field, text: str) -> str:
    return rf"\textbf{{{text}}}" if field.best else text


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["one_line"] = one_line
    return environment.from_string(_PAGE)


_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title | one_line }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { font-weight: bold; padding: 1.5rem 0 .5rem; text-align: left; }
th, td { border-bottom: 1px solid color-mix(in srgb, currentcolor 20%, transparent); padding: .25rem .75rem; }
th, td { text-align: right; white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; }
tbody th { font-weight: normal; }
tr.apart > * { border-top: 2px solid; }
</style>
<h1>{{ report.title | one_line }}</h1>
<p>{{ report.about | one_line }}</p>
{% for sheet in report.sheets %}
<div><table>
<caption>{{ sheet.title | one_line }}</caption>
<thead><tr>{% for name in sheet.header %}<th scope="col">{{ name | one_line }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in sheet.rows %}
<tr{% if sheet.last_apart and loop.last %} class="apart"{% endif %}>
<th scope="row">{{ row[0].text | one_line }}</th>
{% for field in row[1:] %}
<td>{% if field.best %}<b>{{ field.text | one_line }}</b>{% else %}{{ field.text | one_line }}{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% if report.notes %}
<ul>
{% for note in report.notes %}
<li>{{ note | one_line }}</li>
{% endfor %}
</ul>
{% endif %}
</html>"""
