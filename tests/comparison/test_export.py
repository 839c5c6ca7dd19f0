"""Test exported tables: every name is shown unchanged as plain text in every format."""

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustbench_vlm.comparison.export import Field, Report, Sheet, csv_table, html, latex, markdown
from robustbench_vlm.core.text import terminal_text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "a | b",
    "**bold** _it_ `code` ~~gone~~",
    r"\input{/etc/passwd} \write18{ls} $x^2$ 100% #1 a_b {c} ~ & \\",
    "[1em] at the start",
    "*star",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;not an entity&gt; &amp;",
    "https://evil.example www.evil.example a@evil.example",
    "- item",
    "+ item",
    "=1+1",
    "@SUM(1)",
    "# heading",
    "1. item",
    "2) item",
    "> quote",
    "---",
    "===",
    "~~~",
    "&copy; &#60;",
    "\u202etxt.exe \x1b[31m\n\n| a | b |",
)
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))


def seen(text: str) -> str:
    """Return a text as it should be shown: on one line and without characters that cannot be printed."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def report(*names: str) -> Report:
    rows = tuple((Field(name), Field(name, best=True)) for name in names)
    return Report(names[0], names[0], (Sheet(names[0], (names[0], "x"), rows),), tuple(names))


class Read(HTMLParser):
    """HTML parser that collects the tags, and the texts of cells, items and headings."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag in ("th", "td", "li", "h1", "h2", "h3", "p", "caption", "title"):
            self._open = tag
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_html_shows_every_name_unchanged_and_without_its_tags(names: list[str]) -> None:
    read, harmless = Read(html(report(*names))), Read(html(report(*("x" for _ in names))))
    assert read.tags == harmless.tags
    assert [seen(text) for text in read.texts["td"]] == [seen(name) for name in names]
    assert [seen(text) for text in read.texts["th"][2:]] == [seen(name) for name in names]
    assert [seen(text) for text in read.texts["li"]] == [seen(name) for name in names]
    assert [seen(read.texts[tag][0]) for tag in ("title", "h1", "p", "caption")] == [seen(names[0])] * 4


@given(st.lists(NAMES.filter(seen), min_size=1, max_size=3))
def test_markdown_shows_every_name_unchanged_and_without_its_markup(names: list[str]) -> None:
    rendering = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    read = Read(rendering.render(markdown(report(*names))))
    harmless = Read(rendering.render(markdown(report(*("x" for _ in names)))))
    assert read.tags == harmless.tags
    assert [seen(text) for text in read.texts["td"][::2]] == [seen(name) for name in names]
    assert [seen(text) for text in read.texts["li"]] == [seen(name) for name in names]
    assert seen(read.texts["h2"][0]) == seen(read.texts["h3"][0]) == seen(names[0])


@pytest.mark.parametrize("link", ["https://evil.example", "www.evil.example", "WWW.evil.example", "me@evil.example"])
def test_markdown_does_not_link_bare_addresses(link: str) -> None:
    # GitHub makes links from "://", "www." and e-mail addresses, unless they are escaped.
    shown = markdown(report(link))
    assert link not in shown and not re.search(r"(?<!\\)(://|@)|(?i:www\.)", shown.replace(r"\:", ""))


_UNESCAPED = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textasciigrave{}": "`",
    r"{\char34}": '"',
    "{[}": "[",
    "{*}": "*",
    "$-$": "-",
    **{f"\\{char}": char for char in "&%$#_{}"},
}


def set_by_latex(source: str) -> str:
    """Return the text that LaTeX prints for escaped text, or fail if LaTeX would not print a character."""
    shown, rest = "", source
    while rest:
        macro = next((macro for macro in _UNESCAPED if rest.startswith(macro)), rest[0])
        assert macro in _UNESCAPED or macro not in "\\&%$#_{}~^[*", f"{macro!r} in {source!r} is not text"
        shown, rest = shown + _UNESCAPED.get(macro, macro), rest[len(macro) :]
    return shown


@given(st.lists(NAMES, min_size=1, max_size=3))
@example(["0-0"])
def test_latex_prints_every_name_unchanged_and_runs_no_command(names: list[str]) -> None:
    lines = latex(report(*names)).splitlines()
    assert set_by_latex(next(line for line in lines if line.startswith(r"\caption"))[9:-1]) == seen(names[0])
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(names)
    for name, row in zip(names, body, strict=True):
        first, best = re.fullmatch(r"(.*) & \\textbf\{(.*)\} \\\\", row).groups()  # type: ignore[union-attr]
        assert set_by_latex(first) == seen(name)
        # All columns but the first have numbers, in which a range has an en dash.
        assert set_by_latex(best) == re.sub(r"(?<=[0-9])-(?=[0-9])", "--", seen(name))
    # All other lines with names are comments.
    before = lines[: lines.index("")]
    assert all(line.startswith("% ") for line in before) and len(before) == 3 + len(names)


PAPER = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_compiles_a_table_with_any_name(tmp_path: Path) -> None:
    """Compile a paper with a minimal preamble, in which LaTeX warns of every character that it leaves out."""
    (tmp_path / "paper.tex").write_text(PAPER % f"\n{latex(report(*HOSTILE, 'CLIP(2)'))}\n", encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=60)
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(encoding="latin-1")
    assert "Missing character" not in log and "root:" not in log and "Output written on paper.pdf" in log


def test_latex_has_booktabs_rules_bold_text_and_minus_signs() -> None:
    rows = (
        (Field("a"), Field("1.0", best=True)),
        (Field("b"), Field("-2.0", best=True)),
        (Field("mean"), Field("0.5")),
    )
    assert latex(Report("t", "a", (Sheet("s", ("set", "x"), rows, last_apart=True),), ())).split("\n\n")[
        1
    ] == "\n".join(
        [
            *(r"\begin{table}", r"\centering", r"\caption{s}", r"\begin{tabular}{lr}", r"\toprule"),
            *(r"set & x \\", r"\midrule", r"a & \textbf{1.0} \\", r"b & \textbf{$-$2.0} \\", r"\midrule"),
            *(r"mean & 0.5 \\", r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
        ]
    )


@given(st.lists(st.fixed_dictionaries({"name": NAMES, "share": st.floats(0, 1)}), min_size=1, max_size=4))
def test_csv_is_read_as_written_and_has_no_formula(rows: list[dict[str, str | float]]) -> None:
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [float(row["share"]) for row in read] == [row["share"] for row in rows]
    for found, row in zip(read, rows, strict=True):
        assert found["name"].removeprefix("'") == terminal_text(str(row["name"])).removeprefix("'")
        assert not found["name"].lstrip().startswith(("=", "+", "-", "@"))
