"""Tables and texts at any width: no text is cut, and no text controls the terminal."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from robustbench_vlm.cli.render import progress_bar
from robustbench_vlm.cli.render.documents import Entry, document_lines, entry_lines
from robustbench_vlm.cli.render.output import duration
from robustbench_vlm.cli.render.text_table import Columns, table, wrapped
from robustbench_vlm.core.progress import Progress, in_step
from robustbench_vlm.core.text import terminal_text

COLUMNS = Columns(("model", "eps"), "name", ("n", "share"), "notes")
WORDS = st.text(st.characters(categories=["L", "N", "P", "S", "M"]), min_size=1, max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"model": WORDS, "eps": WORDS, "name": WORDS, "n": st.integers(0, 10**6).map(str), "share": st.just("12.5")},
        optional={"notes": WORDS},
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.integers(10, 200))
def test_every_cell_is_shown_whole_at_every_width(rows: list[dict[str, str]], width: int) -> None:
    lines = [line.text for line in table(rows, COLUMNS, width)]
    shown = "\n".join(lines)
    assert all(terminal_text(value) in shown for row in rows for value in row.values())


@given(ROWS, st.integers(10, 200))
def test_numbers_stay_side_by_side_and_lines_fit_the_width_if_possible(rows: list[dict[str, str]], width: int) -> None:
    lines = [line.text for line in table(rows, COLUMNS, width)]
    assert sum(bool(re.search(r"\d+ +12\.5\b", line)) for line in lines) >= len(rows)
    widest = max(cell_len(terminal_text(value)) for row in rows for value in row.values())
    # The narrowest layout needs two indents, the numbers and their gap. Headings and notes have separate lines.
    if width >= 4 + 7 + 2 + 5 and width >= 2 * widest + 7:
        assert all(cell_len(line) <= width for line in lines)


def test_empty_columns_are_left_out() -> None:
    lines = table([{"name": "a", "n": "1", "share": "", "notes": ""}], COLUMNS, 80)
    assert [line.text for line in lines] == ["name  n", "a     1"]


@given(st.text())
def test_terminal_text_has_no_control_characters_and_loses_nothing(text: str) -> None:
    shown = terminal_text(text)
    assert shown.isprintable()
    if "\\" not in text:
        assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize("text", ["\x1b[31m", "a\nb", "\u202e", "\udcff", "\x07", "\x9b"])
def test_terminal_escapes_become_visible(text: str) -> None:
    assert terminal_text(text) != text and terminal_text(text).isprintable()


@given(st.lists(WORDS, max_size=20), st.integers(20, 120))
def test_wrapped_sentences_keep_their_words(words: list[str], width: int) -> None:
    text = " ".join(words)
    lines = [line.text for line in wrapped(text, width, indent="  ")]
    assert " ".join(line.strip() for line in lines).split() == terminal_text(text).split()


@given(st.lists(st.builds(Entry, WORDS, WORDS, st.just("") | WORDS), max_size=5), st.integers(20, 120))
def test_lists_show_every_name(entries: list[Entry], width: int) -> None:
    shown = "\n".join(line.text for line in entry_lines(entries, width))
    assert all(entry.name in shown and (entry.error or entry.summary) in shown for entry in entries)


def test_documents_leave_empty_fields_out() -> None:
    value = {"name": "x", "empty": "", "none": None, "zero": 0, "list": [1, 2], "inner": {"a": [{"b": 1}]}}
    lines = [line.text for line in document_lines(value, 80)]
    assert lines == ["name: x", "zero: 0", "list: 1, 2", "inner:", "  a:", "    -", "      b: 1"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (89, "89 s"), (90, "2 min"), (60 * 99, "99 min"), (7800, "2 h 10 min")],
)
def test_durations_have_readable_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_is_printed_if_there_is_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.1)
    with progress_bar.progress("steps") as on_progress:
        time.sleep(0.35)
        silent = capsys.readouterr().err
        on_progress(Progress(1, 4, 3.0))
        time.sleep(0.35)
    lines = capsys.readouterr().err.splitlines()
    assert silent.startswith("working, ") and silent.count("so far") >= 2
    assert lines[0].startswith("1 of 4 steps, about") and lines[-1].startswith("1 of 4 steps, ")
    with progress_bar.progress("samples") as on_progress:
        in_step(on_progress, 2, 3)(Progress(4, 4))
    assert capsys.readouterr().err.splitlines() == ["step 2 of 3: 4 of 4 samples"]
    with progress_bar.progress("steps", quiet=True):
        time.sleep(0.25)
    assert capsys.readouterr().err == ""
