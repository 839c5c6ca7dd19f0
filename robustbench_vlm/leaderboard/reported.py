"""Read the numbers that papers report from the file reported.csv next to a track's entries.

Reported numbers are shown with their sources and warnings. They are shown separately from measured numbers and never
averaged with them.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import read_text
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.leaderboard.board import ReportedNumber

FILE = "reported.csv"
_UNDEFENDED = ("CLIP",)
"""Names that papers use for the undefended model."""
_MOST_UNDEFENDED = 0.01
"""Largest plausible robust accuracy of an undefended model at eps 1/255. Under a strong attack, such a
model misclassifies nearly all samples."""
_ROUNDED = 0.0005
"""Tolerance for rounding, because papers print percentages with one or two decimals."""

_Columns = tuple[str, ...]


def read_reported(folder: Path) -> tuple[ReportedNumber, ...]:
    """Return the numbers in a folder's reported.csv, in the order of the file. Returns () if the file is missing.

    Each robust accuracy is returned with the clean accuracy that the same paper reports for the same method and
    dataset. Raises UserError if the file lacks a column or a number.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    text = read_text(path, "save the table as a UTF-8 CSV file")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        clean = {_about(row): _share(row) for row in rows if row["metric"] == "clean"}
        robust = [row for row in rows if row["metric"] == "robust"]
        weakest = _under_pgd(robust)
        return tuple(_number(row, clean.get(_about(row)), weakest.get(_attacked(row))) for row in robust)
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of reported numbers: {error}; correct the row or the column names"
        ) from error


def _number(row: Mapping[str, str], clean: float | None, under_pgd: float | None) -> ReportedNumber:
    return ReportedNumber(
        method=row["method"],
        paper=row["paper"],
        source=row["source_url"],
        table=row["table"],
        architecture=row["arch"],
        training=", ".join(part for part in (row["train_dataset"], row["train_eps"]) if part),
        attack=row["eval_attack"],
        eps=row["eval_eps"],
        steps=row["eval_steps"],
        dataset=row["dataset"],
        clean=clean,
        robust=_share(row),
        confidence=row["confidence"],
        note=row["note"],
        warnings=tuple(_warnings(row, under_pgd)),
    )


def _warnings(row: Mapping[str, str], under_pgd: float | None) -> Iterable[str]:
    robust = _share(row)
    is_attacked = not row["eval_eps"].startswith("mean") and parse_eps(row["eval_eps"]) >= parse_eps("1/255")
    if row["method"] in _UNDEFENDED and is_attacked and robust > _MOST_UNDEFENDED:
        yield ("an undefended model has a robust accuracy above 1 % at eps 1/255 or more, so the attack is too weak")
    if (
        row["eval_attack"].startswith(("AutoAttack", "APGD"))
        and under_pgd is not None
        and robust > under_pgd + _ROUNDED + 1e-9
    ):
        yield (
            "this robust accuracy is higher than the robust accuracy under PGD in the same paper, although its attack"
            f" should be stronger than PGD: {percent(under_pgd, 2)} % under PGD"
        )


def _under_pgd(rows: Sequence[Mapping[str, str]]) -> dict[_Columns, float]:
    found: dict[_Columns, float] = {}
    for row in rows:
        if row["eval_attack"].startswith("PGD"):
            found[_attacked(row)] = min(_share(row), found.get(_attacked(row), 1.0))
    return found


def _about(row: Mapping[str, str]) -> _Columns:
    return tuple(row[key] for key in ("paper", "method", "arch", "train_dataset", "train_eps", "dataset"))


def _attacked(row: Mapping[str, str]) -> _Columns:
    return (*_about(row), row["eval_eps"])


def _share(row: Mapping[str, str]) -> float:
    return float(row["value_percent"]) / 100
