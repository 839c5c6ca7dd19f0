"""Untrusted text is escaped in every output format, and only one function per format does it."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vlm.core.text import (
    bibtex_text,
    csv_cell,
    csv_text,
    latex_text,
    markdown_text,
    one_line,
    plot_text,
    terminal_text,
)

PACKAGE = Path(__file__).parents[1] / "robustbench_vlm"
HOSTILE = "\x1b[31m\x9b0m\u202e\udcff\r\n\t"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (7/255), été 猫", "plain (7/255), été 猫"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_terminal(text: str, expected: str) -> None:
    assert terminal_text(text) == expected and terminal_text(expected) == expected
    assert terminal_text(f"{text}\n", keep_newlines=True).endswith("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain  text, 1-2", "plain  text, 1-2"),
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", r"'\t=1"),
        ("\r=1", r"'\r=1"),
        ("  =1", "'  =1"),
        ("\N{FULLWIDTH EQUALS SIGN}1", "'\N{FULLWIDTH EQUALS SIGN}1"),
        ("a\tb\rc\x1b[31m", r"a\tb\rc\x1b[31m"),
        ("", ""),
    ],
)
def test_csv_cell(text: str, expected: str) -> None:
    assert csv_cell(text) == expected


def test_csv_numbers_are_numbers() -> None:
    text = csv_text([("name", "=x"), ("a,b", -0.5), ('"', 3)])
    assert text == 'name,\'=x\n"a,b",-0.5\n"""",3\n'


@given(st.lists(st.text(), min_size=1))
def test_csv_reads_back_as_one_row_of_the_same_length(cells: list[str]) -> None:
    (row,) = csv.reader(io.StringIO(csv_text([["x", *cells]])))
    assert row == ["x", *map(csv_cell, cells)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (7/255)", "plain (7/255)"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        ("a|b`c`*d*_e_~f~", r"a\|b\`c\`\*d\*\_e\_\~f\~"),
        ("![x](https://y)", r"\!\[x\](https\://y)"),
        ("# x\n\n- y", r"\# x - y"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("-1.5", "-1.5"),
        ("www.example.org @name $x$", r"www\.example.org \@name \$x\$"),
    ],
)
def test_markdown(text: str, expected: str) -> None:
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain (7/255)", "plain (7/255)"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("a_b 5 % & #1 $x$", r"a\_b 5 \% \& \#1 \$x\$"),
        ("[1em]*", "{[}1em]{*}"),
        ("x^2 ~ <y>", r"x\textasciicircum{}2 \textasciitilde{} \textless{}y\textgreater{}"),
        ("-1.5", "$-$1.5"),
        ("a\n%b", r"a \%b"),
    ],
)
def test_latex(text: str, expected: str) -> None:
    assert latex_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a  title", "a title"), ("}} \\input{/etc/passwd} % $x$", " input/etc/passwd  x"), ("\x1b[31m", "x1b[31m")],
)
def test_bibtex(text: str, expected: str) -> None:
    assert bibtex_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("clip", "clip"), ("$x$", r"\$x\$"), ("_clip", " _clip"), ("a\nb\x1b", "a b ")]
)
def test_plot(text: str, expected: str) -> None:
    assert plot_text(text) == expected


@pytest.mark.parametrize(
    "neutral", [terminal_text, one_line, csv_cell, markdown_text, latex_text, bibtex_text, plot_text]
)
def test_no_output_has_control_characters(neutral: Callable[[str], str]) -> None:
    assert neutral(f"a{HOSTILE}b").isprintable()


# For each kind of escaping: a pattern that finds it in code, and an example that the pattern must match.
COPIES = {
    "control characters": (
        r"isprintable\(\) (else|or)|ascii\(\w+\)\[1:-1\]|unicodedata",
        "char if char.isprintable() else ' '",
    ),
    "formulas": (r"""startswith\(\(?["']=""", 'value.startswith(("=", "+", "-", "@"))'),
    "LaTeX": (r"textbackslash|\\\\textasciitilde", r"r'\textbackslash{}'"),
    "Markdown": (r"""\[\\\\`\*_|r?["']\\\\?`\*""", r're.compile(r"[\\`*_{}"'),
    "matplotlib": (r"""replace\("\$\"""", r'label.replace("$", r"\$")'),
    "CSV writers": (r"csv\.writer|DictWriter|to_csv", "csv.DictWriter(text, columns)"),
    "HTML": (r"html\.escape|Markup\(", "html.escape(name)"),
}
ALLOWED = {
    "control characters": {"core/text.py"},
    "formulas": set(),
    "LaTeX": {"core/text.py"},
    "Markdown": {"core/text.py"},
    "matplotlib": {"core/text.py"},
    "CSV writers": {
        "core/text.py",
        # It writes only numbers.
        "training/log.py",
        # It writes setting names and numbers from the user's own command line.
        "training/sweep.py",
        # Escaping would change the published digest, which covers the exact bytes of a sample list.
        "datasets/published/status.py",
    },
    "HTML": set(),
}


@pytest.mark.parametrize("guard", COPIES)
def test_only_the_allowed_modules_escape_text(guard: str) -> None:
    pattern, example = COPIES[guard]
    assert re.search(pattern, example)
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(pattern, path.read_text("utf-8"))
    }
    assert found == ALLOWED[guard]
