"""Escape untrusted text for each output format: terminal, CSV, Markdown, LaTeX, BibTeX and plots.

Model files, datasets and submitted entries contain names and notes by other people. Before code writes such text to an
output, it calls the function for the output format. The text then cannot act as a formula, a terminal escape sequence
or markup. For HTML pages, jinja2 escapes markup, and `terminal_text` or `one_line` handles control characters.
"""

import csv
import io
import re
from collections.abc import Iterable

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that start a formula in a spreadsheet. The last four are full-width forms of the first four."""
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~$&!@]|:(?=//)|(?<=www)\.|^[-+=](?!\d)|^\d+[.)](?!\d)", re.IGNORECASE)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # The command \textquotedbl is not available in LaTeX's default font encoding.
    '"': r"{\char34}",
    # If a table row starts with "[" or "*", LaTeX reads it as an argument of the line break before the row.
    "[": "{[}",
    "*": "{*}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
_BIBTEX = re.compile(r"[{}\\%$#&^~@]")


def terminal_text(text: str, *, keep_newlines: bool = False) -> str:
    r"""Replace control characters, text direction marks and surrogates in text by escapes such as ``\x1b``.

    Line breaks are escaped too, unless `keep_newlines` is true.
    """
    if text.isprintable():
        return text
    kept = "\n" if keep_newlines else ""
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """Return text on one line. Each run of whitespace and unprintable characters becomes one space."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


def csv_cell(text: str) -> str:
    r"""Escape text for a CSV cell, so that a spreadsheet does not compute it as a formula.

    Text that looks like a formula gets a leading apostrophe. Control characters, including tabs and line breaks, become
    escapes such as ``\t``. Other text is returned unchanged. See
    https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{terminal_text(text)}" if text.lstrip().startswith(_FORMULA) else terminal_text(text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV text. Strings are escaped by `csv_cell`. Other values are not changed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Escape text for one line of GitHub's Markdown, so that it does not act as markup, list, heading or link."""
    return _MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", one_line(text))


def latex_text(text: str) -> str:
    """Escape text for one line of LaTeX, so that it is printed literally. A hyphen before a number becomes a minus."""
    escaped = "".join(_LATEX.get(char, char) for char in one_line(text))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def bibtex_text(text: str) -> str:
    """Return text on one line for a BibTeX field. Special characters of BibTeX and TeX are removed."""
    return _BIBTEX.sub("", terminal_text(" ".join(text.split())))


def plot_text(text: str) -> str:
    """Escape text, so that matplotlib draws it literally.

    Without this, matplotlib draws text between dollar signs as a formula. Matplotlib also omits labels that begin with
    an underscore from the legend.
    """
    text = "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
