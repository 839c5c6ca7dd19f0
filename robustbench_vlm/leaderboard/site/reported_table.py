"""Table of methods and datasets with the robust accuracies that papers report, and the doubts about them."""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.numbers import percent
from robustbench_vlm.leaderboard.board import Board, ReportedNumber

MOST_ROWS = 200
"""Largest number of rows. All numbers are on the pages of the papers."""
SECONDARY = "The number was read in another source than the paper itself"
_AVERAGE = re.compile(r"AVERAGE\((.*)\)", re.ASCII)
_STRONG = ("AutoAttack", "APGD")
"""The first letters of the names of attacks that are similar to the standard attack of the tracks."""


@dataclass(frozen=True)
class ReportedCell:
    """A robust accuracy in the table."""

    value: float
    """The accuracy in [0, 1]."""
    marks: str
    """The letters of its doubts, such as "ac"."""

    @property
    def text(self) -> str:
        """The accuracy in %."""
        return percent(self.value)


@dataclass(frozen=True)
class ReportedRow:
    """Numbers of one method in one table of a paper, all measured with the same attack and radius."""

    about: ReportedNumber
    """One of the numbers of the row. Method, source, attack, radius and training are equal for all of them."""
    notes: tuple[int, ...]
    """The numbers of its notes in `ReportedTable.notes`, from 1."""
    cells: tuple[ReportedCell | None, ...]
    """One number for each dataset in `ReportedTable.datasets`. None if the paper reports no number."""
    mean: ReportedCell | None
    """The mean that the paper reports."""
    mean_over: str
    """The datasets of this mean in the words of reported.csv, such as "16"."""

    @property
    def attack(self) -> str:
        """The name of the attack without the explanation in parentheses."""
        return self.about.attack.partition("(")[0].strip()


@dataclass(frozen=True)
class ReportedTable:
    """The rows and columns of the table, and the doubts that its cells refer to by a letter."""

    datasets: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    doubts: Mapping[str, str]
    """Sentences. The keys are lower-case letters."""
    notes: tuple[str, ...]
    """Remarks on numbers of a row, such as on a test-time defense that the attack did not know."""
    left_out: int
    """Number of rows beyond `MOST_ROWS`."""


def reported_table(board: Board) -> ReportedTable:
    """Return the table of a board's reported numbers, for the datasets of the board.

    Rows at the standard radius come first, and within a radius those under AutoAttack or APGD.
    """
    columns = {_plain(name): name for name in board.datasets}
    rows: dict[tuple[str, ...], list[ReportedNumber]] = {}
    for number in board.reported:
        if number.robust is not None and (_plain(number.dataset) in columns or _AVERAGE.fullmatch(number.dataset)):
            rows.setdefault(_setting(number), []).append(number)
    doubted = sorted({text for each in board.reported for text in _doubts(each)})
    letters = dict(zip(doubted, string.ascii_lowercase, strict=False))
    groups = [numbers for numbers in rows.values() if any(_plain(each.dataset) in columns for each in numbers)]
    groups.sort(key=lambda numbers: (numbers[0].eps != board.eps, numbers[0].eps, not _is_strong(numbers[0])))
    notes: list[str] = []
    kept = [_row(numbers, list(columns), letters, notes) for numbers in groups[:MOST_ROWS]]
    used = {mark for row in kept for cell in (*row.cells, row.mean) if cell for mark in cell.marks}
    doubts = {letter: text for text, letter in letters.items() if letter in used}
    return ReportedTable(board.datasets, tuple(kept), doubts, tuple(notes), len(groups) - len(kept))


def _row(
    numbers: Sequence[ReportedNumber], columns: Iterable[str], letters: Mapping[str, str], notes: list[str]
) -> ReportedRow:
    """Return a row. New notes are added to `notes`."""
    cells = {_plain(each.dataset): _cell(each, letters) for each in numbers}
    own = list(dict.fromkeys(each.note for each in numbers if each.note))
    notes += [note for note in own if note not in notes]
    averages = [(each, found[1]) for each in numbers if (found := _AVERAGE.fullmatch(each.dataset))]
    mean, over = averages[0] if averages else (None, "")
    return ReportedRow(
        about=numbers[0],
        notes=tuple(sorted(notes.index(note) + 1 for note in own)),
        cells=tuple(cells.get(name) for name in columns),
        mean=_cell(mean, letters) if mean else None,
        mean_over=over,
    )


def _cell(number: ReportedNumber, letters: Mapping[str, str]) -> ReportedCell:
    marks = "".join(sorted(letters[text] for text in _doubts(number) if text in letters))
    return ReportedCell(number.robust or 0.0, marks)


def _doubts(number: ReportedNumber) -> tuple[str, ...]:
    """Return the doubts about a number, without the values that differ from number to number."""
    found = tuple(text[:1].upper() + text[1:].partition(":")[0] for text in number.warnings)
    return found if number.confidence.startswith("primary") else (*found, SECONDARY)


def _setting(number: ReportedNumber) -> tuple[str, ...]:
    about = (number.method, number.paper, number.table, number.architecture, number.training)
    return (*about, number.attack, number.eps, number.steps)


def _is_strong(number: ReportedNumber) -> bool:
    return number.attack.startswith(_STRONG)


def _plain(name: str) -> str:
    """Return a name of a dataset without case and punctuation, because papers write names differently."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
