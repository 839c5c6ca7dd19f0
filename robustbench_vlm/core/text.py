"""Neutralise text that others wrote: one function for each kind of output.

Names, notes and card fields come from model files, datasets and submitted entries. Every writer passes them through
the function of its output, so that no name becomes a formula, a terminal escape or markup. HTML pages rely on the
autoescape of jinja2 and need only `terminal_text` or `one_line` for control characters.
"""

import csv
import io
import re
from collections.abc import Iterable

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a formula; the last four are the full-width forms."""
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~$&!@]|:(?=//)|(?<=www)\.|^[-+=](?!\d)|^\d+[.)](?!\d)", re.IGNORECASE)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # \textquotedbl is not in LaTeX's default font encoding.
    '"': r"{\char34}",
    # At the start of a table row, LaTeX would read these two as arguments of the preceding line break.
    "[": "{[}",
    "*": "{*}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
_BIBTEX = re.compile(r"[{}\\%$#&^~@]")


def terminal_text(text: str, *, keep_newlines: bool = False) -> str:
    r"""Return text whose control characters, direction marks and surrogates are visible escapes such as ``\x1b``."""
    kept = "\n" if keep_newlines else ""
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def one_line(text: str) -> str:
    """Return text on one line: each run of blanks and unprintable characters becomes one space."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def csv_cell(text: str) -> str:
    """Return text that a spreadsheet shows and does not compute: a formula gets a leading apostrophe.

    Control characters, tab and carriage return among them, become visible escapes. Other text is returned unchanged.
    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{terminal_text(text)}" if text.lstrip().startswith(_FORMULA) else terminal_text(text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV; strings pass through `csv_cell`, numbers are written as they are."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Return text on one line that GitHub's Markdown shows literally: no markup, list, heading, link or mention."""
    return _MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", one_line(text))


def latex_text(text: str) -> str:
    """Return text on one line that LaTeX typesets literally, with a minus sign in front of a number."""
    escaped = "".join(_LATEX.get(char, char) for char in one_line(text))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)


def bibtex_text(text: str) -> str:
    """Return text on one line for the value of a BibTeX field; characters special to BibTeX or TeX are dropped."""
    return _BIBTEX.sub("", terminal_text(" ".join(text.split())))


def plot_text(text: str) -> str:
    """Return text that matplotlib draws literally.

    Text between dollar signs would be read as a formula, and a label that begins with an underscore would be missing
    from the legend.
    """
    text = "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
