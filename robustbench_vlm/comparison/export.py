"""Tables as Markdown, LaTeX, HTML and CSV, in which every text stays text.

Names come from whoever hands in a result, so that each writer escapes what its format would read as markup.
"""

import csv
import functools
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Field:
    """One field of a table."""

    text: str
    best: bool = False
    """Shown bold."""


@dataclass(frozen=True)
class Sheet:
    """A table: the first column has names, aligned to the left, the others have numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    last_apart: bool = False
    """The last row sums the others up: a rule stands before it."""


@dataclass(frozen=True)
class Report:
    """Several tables with what has to be known about them."""

    title: str
    about: str
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...]


def markdown(report: Report) -> str:
    """Return a report as GitHub's Markdown."""
    lines = [f"## {_markdown(report.title)}", "", _markdown(report.about), ""]
    for sheet in report.sheets:
        lines += [f"### {_markdown(sheet.title)}", "", _piped(map(_markdown, sheet.header))]
        lines += [_piped([":--", *["--:"] * (len(sheet.header) - 1)])]
        lines += [_piped(map(_markdown_field, row)) for row in sheet.rows]
        lines.append("")
    return "\n".join([*lines, *(f"* {_markdown(note)}" for note in report.notes)]).rstrip() + "\n"


def latex(report: Report) -> str:
    r"""Return a report's tables for a paper, with booktabs' rules; notes are comments."""
    lines = [f"% {_one_line(text)}" for text in (report.title, report.about, *report.notes)]
    lines.append(r"% \usepackage{booktabs}")
    for sheet in report.sheets:
        rows = [" & ".join(map(_latex_field, row)) + r" \\" for row in sheet.rows]
        if sheet.last_apart:
            rows.insert(len(rows) - 1, r"\midrule")
        lines += [
            *("", r"\begin{table}", r"\centering", rf"\caption{{{_latex(sheet.title)}}}"),
            *(rf"\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}", r"\toprule"),
            *(" & ".join(map(_latex, sheet.header)) + r" \\", r"\midrule", *rows),
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}"),
        ]
    return "\n".join(lines) + "\n"


def html(report: Report) -> str:
    """Return a report as one page that needs nothing else, light or dark as the reader's system is."""
    return f"{_template().render(report=report)}\n"


def csv_table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Return rows as CSV under the keys of the first; a text that a spreadsheet would compute gets an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _csv(value) if isinstance(value, str) else value for key, value in row.items()})
    return text.getvalue()


def _one_line(text: str) -> str:
    """Return text without line breaks, control characters and what turns the direction of reading."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~$&!@]|:(?=//)|(?<=www)\.|^[-+=](?!\d)|^\d+[.)](?!\d)", re.IGNORECASE)


def _markdown(text: str) -> str:
    # A leading minus or number, a scheme or www. would make a list or a link out of a name.
    return _MARKUP.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", _one_line(text))


def _markdown_field(field: Field) -> str:
    return f"**{_markdown(field.text)}**" if field.best else _markdown(field.text)


def _piped(fields: Iterable[str]) -> str:
    return f"| {' | '.join(fields)} |"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # \textquotedbl is not in the fonts that LaTeX starts with.
    '"': r"{\char34}",
    # At the start of a row these two would be arguments of the line break before.
    "[": "{[}",
    "*": "{*}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(char, char) for char in _one_line(text))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def _latex_field(field: Field) -> str:
    return rf"\textbf{{{_latex(field.text)}}}" if field.best else _latex(field.text)


def _csv(text: str) -> str:
    text = _one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["one_line"] = _one_line
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
