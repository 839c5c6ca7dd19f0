"""The table of reported numbers: a row for each method and setting, a column for each dataset, doubts as letters."""

import dataclasses
import functools
from pathlib import Path

import made_up_boards as made

from robustbench_vlm.core.files import package_folder
from robustbench_vlm.leaderboard.board import Board, ReportedNumber
from robustbench_vlm.leaderboard.reported import read_reported
from robustbench_vlm.leaderboard.site import reported_table as tables
from robustbench_vlm.tracks import ZEROSHOT15


def _board(reported: tuple[ReportedNumber, ...]) -> Board:
    return dataclasses.replace(made.board(), eps="1/255", datasets=ZEROSHOT15.datasets, reported=reported, rows=())


@functools.cache
def _all() -> tuple[ReportedNumber, ...]:
    return read_reported(Path(package_folder("leaderboards")) / "zeroshot15")


def test_every_reported_number_of_a_dataset_of_the_track_is_in_its_row_and_column() -> None:
    numbers = _all()
    table = tables.reported_table(_board(numbers))
    shown = {
        (*_setting(row.about), name, cell.value)
        for row in table.rows
        for name, cell in zip(table.datasets, row.cells, strict=True)
        if cell
    }
    columns = {name.replace("-", ""): name for name in ZEROSHOT15.datasets}
    given = {
        (*_setting(each), columns[each.dataset.lower()], each.robust)
        for each in numbers
        if each.dataset.lower() in columns
    }
    assert shown == given and len(given) > 1000 and table.left_out == 0


def test_numbers_with_a_warning_or_from_another_source_have_letters_that_are_explained() -> None:
    numbers = _all()
    table = tables.reported_table(_board(numbers))
    marks = {(row.about, name): cell.marks for row in table.rows for name, cell in _cells(table, row)}
    doubted = {about.method for (about, _), found in marks.items() if found}
    assert {"CLIP", "FARE"} <= doubted
    assert set("".join(marks.values())) <= set(table.doubts) and len(set(table.doubts.values())) == len(table.doubts)
    (weak,) = [letter for letter, text in table.doubts.items() if "undefended" in text]
    undefended = [cell for row in table.rows for cell in row.cells if cell and weak in cell.marks]
    assert undefended and all(cell.value > 0.01 for cell in undefended)


def test_rows_at_the_radius_of_the_track_under_autoattack_come_first() -> None:
    rows = tables.reported_table(_board(_all())).rows
    radii = [row.about.eps for row in rows]
    assert radii[: radii.count("1/255")] == ["1/255"] * radii.count("1/255")
    strong = [row.about.attack.startswith(("AutoAttack", "APGD")) for row in rows if row.about.eps == "1/255"]
    assert strong == sorted(strong, reverse=True)
    assert any("NON-adaptively" in note for note in tables.reported_table(_board(_all())).notes)


def test_a_large_table_ends_and_says_how_many_rows_are_missing() -> None:
    numbers = tuple(
        dataclasses.replace(_all()[0], method=f"method {number}", dataset="CIFAR10")
        for number in range(tables.MOST_ROWS + 7)
    )
    table = tables.reported_table(_board(numbers))
    assert (len(table.rows), table.left_out) == (tables.MOST_ROWS, 7)


def _setting(number: ReportedNumber) -> tuple[str, ...]:
    return (number.method, number.paper, number.table, number.training, number.attack, number.eps)


def _cells(table: tables.ReportedTable, row: tables.ReportedRow) -> list[tuple[str, tables.ReportedCell]]:
    return [(name, cell) for name, cell in zip(table.datasets, row.cells, strict=True) if cell]
