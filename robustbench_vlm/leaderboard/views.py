"""Views: Markdown that is generated from the entries, and held against them by `vlmbench leaderboard check`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.text import markdown_text
from robustbench_vlm.leaderboard.board import Board, Row

BEGIN, END = "<!-- leaderboard {} -->", "<!-- end of leaderboard -->"
"""Around the table of a track in a Markdown file."""
_HEAD = ("rank", "model", "status", "clean", "robust", "clean rank", "samples", "training", "fidelity", "warnings")
_LONGEST = 120
"""Characters of what a card says that a cell of a table shows."""


def markdown(board: Board) -> str:
    """Return a board's table with a sentence on what it is; names and notes are text, never markup."""
    lines = [
        f"{board.attack} at {board.norm} {board.eps}, protocol {board.protocol['label']}, mean over"
        f" {len([name for name in board.datasets if name not in board.seen])} datasets in % with 95 % intervals."
        " Robust is the worst number known: a sample counts that no attack on record, and no counterexample, broke."
        " Without a rank: the attack is not complete, and the number is under the attacks that it names, or disputed.",
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{' --- |' * len(_HEAD)}",
        *(f"| {' | '.join(_cells(row))} |" for row in board.rows),
    ]
    if not board.rows:
        lines = ["Nothing has been measured on this track yet: `vlmbench submit` adds the first entry."]
    if board.absent:
        lines += ["", f"Left out, since their records cannot be had: {markdown_text(', '.join(board.absent))}."]
    if board.reported:
        papers = len({number.paper for number in board.reported})
        lines += ["", f"{len(board.reported)} numbers that {papers} papers report are in `reported.csv`, unranked."]
    return "\n".join(lines) + "\n"


def page(boards: Sequence[Board]) -> str:
    """Return leaderboards/README.md."""
    parts = ["# Leaderboards\n", "Made by `vlmbench leaderboard build` from the entries beside it; never edited.\n"]
    parts += [f"## {board.track}\n\n{markdown_text(board.description)}.\n\n{markdown(board)}" for board in boards]
    return "\n".join(parts)


def with_tables(document: str, boards: Iterable[Board]) -> str:
    """Return a Markdown document with the tables between its markers made anew.

    Raises UserError for a marker without an end.
    """
    for board in boards:
        begin = BEGIN.format(board.track)
        head, found, rest = document.partition(begin)
        if not found:
            continue
        _, end, tail = rest.partition(END)
        if not end:
            raise UserError(f"the marker {begin} has no {END} after it")
        document = f"{head}{begin}\n{markdown(board)}{END}{tail}"
    return document


def views(boards: Sequence[Board], folder: Path) -> dict[Path, str]:
    """Return every generated file of a folder of leaderboards, and the README beside it that has their tables."""
    made = {folder / "README.md": page(boards)}
    readme = folder.parent / "README.md"
    if readme.is_file():
        made[readme] = with_tables(readme.read_text(encoding="utf-8"), boards)
    return made


def _cells(row: Row) -> list[str]:
    codes = ", ".join(dict.fromkeys(warning.partition(":")[0] for warning in row.warnings))
    difference = f"{row.clean_rank} ({row.rank_difference:+d})" if row.rank else ""
    samples = str(row.robust.n)
    return [
        *(row.rank or "-", markdown_text(row.model), row.status, _shown(row.clean), _robust(row), difference, samples),
        *(markdown_text(row.training[:_LONGEST]), markdown_text(row.fidelity[:_LONGEST]), markdown_text(codes)),
    ]


def _robust(row: Row) -> str:
    shown = _shown(row.robust)
    return shown if row.rank else f"{shown} under {markdown_text(', '.join(row.under) or 'parts')}"


def _shown(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"
