"""Downloads of a board: the whole board as JSON, and its rows and the reported numbers as CSV."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.text import csv_text
from robustbench_vlm.leaderboard.board import Board, BoardRow


def board_json(board: Board) -> str:
    """Return the board as a JSON document with ASCII characters only. Each model has one line."""
    fields = [f"{json.dumps(name)}: {_lines(value)}" for name, value in board.to_json().items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def board_csv(board: Board) -> str:
    """Return the board as CSV with one line for each model. Returns "" for a board without models.

    Accuracies are in [0, 1]. The means with their intervals come first, then the accuracies on each dataset.
    """
    return _csv([_line(row) for row in board.rows])


def reported_csv(board: Board) -> str:
    """Return the reported numbers as CSV with one line for each number.

    Returns "" for a board without reported numbers.
    """
    return _csv([{**number, "warnings": "; ".join(number["warnings"])} for number in plain(board.reported)])


def _lines(value: Any) -> str:
    # json.dumps with an indent is several times slower, because it does not use the encoder in C.
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(each, allow_nan=False) for each in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def _line(row: BoardRow) -> Mapping[str, Any]:
    texts = ("status", "defense", "fidelity", "training", "architecture", "paper", "licence")
    accuracies = {
        "clean": row.clean,
        "robust": row.robust,
        **{f"under_{name}": each for name, each in row.under.items()},
    }
    by_dataset = {f"{kind}_{name}": each for name, kinds in row.datasets.items() for kind, each in kinds.items()}
    line: dict[str, Any] = {"rank": row.rank, "model": row.model}
    for name, accuracy in accuracies.items():
        line |= row.estimates.get(name, accuracy).columns(name)
    line |= {"n": row.robust.n, "clean_rank": row.clean_rank, "rank_difference": row.rank_difference}
    line |= {"counterexamples": row.counterexamples, "passes": row.passes}
    line |= {"estimated": "; ".join(f"{name} {each.text}" for name, each in row.estimates.items())}
    line |= {name: getattr(row, name) for name in texts} | {"warnings": "; ".join(row.warnings)}
    return line | {name: accuracy.value for name, accuracy in by_dataset.items()}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line))
    if not lines:
        return ""
    return csv_text([names, *([line.get(name, "") for name in names] for line in lines)])
