"""The lowest known robust accuracy with samples that are not finished, and its marks on all views of a board."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_results import estimated, evidence, write_board_entry

from robustbench_vlm.core.records import Verdict
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.estimate import CellDraws, estimate_mean
from robustbench_vlm.leaderboard.board import Board
from robustbench_vlm.leaderboard.entry import Counterexample
from robustbench_vlm.leaderboard.known_estimates import known_estimates
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.site import site_files
from robustbench_vlm.leaderboard.views import markdown
from robustbench_vlm.tracks import MINI

SMALL = Threat("Linf", parse_eps("2.5/255"))
SIZE = 20
OUTCOMES = st.lists(st.sampled_from(["clean", "apgd-ce", "square", "", "", ""]), min_size=SIZE, max_size=SIZE)


def example(sample: str, dataset: str = "shapes") -> Counterexample:
    return Counterexample(dataset, sample, "Linf", 0.009, 1, "vlmbench verify, seed 1")


@settings(max_examples=40)
@given(OUTCOMES, OUTCOMES, OUTCOMES, st.integers(0, 2 * SIZE), st.sets(st.integers(0, SIZE - 1), max_size=2))
def test_samples_that_are_not_finished_count_neither_as_robust_nor_as_broken(
    shapes: list[str], digits: list[str], other: list[str], drawn: int, hit: set[int]
) -> None:
    full = {"shapes": shapes, "digits": digits}
    cells = estimated("a", full, drawn, eps="2.5/255")
    # Another attack was run in full on one of the datasets.
    pairs = zip(shapes, other, strict=True)
    second = ["clean" if first == "clean" else stage.replace("clean", "") for first, stage in pairs]
    found = [*cells, evidence("a", second, "shapes", attack="cw", eps="2.5/255")]
    known = known_estimates(found, [example(f"{n:04d}") for n in hit], SMALL, ())
    if not any(each.stages for each in cells):
        assert known == {}
        return
    robust = possible = 0
    for cell in cells:
        for place, result in enumerate(cell.results):
            is_broken = cell is cells[0] and second[place] != ""
            is_hit = cell is cells[0] and place in hit
            robust += result.verdict is Verdict.ROBUST and not is_broken and not is_hit
            possible += result.verdict is not Verdict.BROKEN and not is_broken
    low, high = known[""].full_attack
    assert robust / (2 * SIZE) - 1e-9 <= low <= known[""].value + 1e-9
    assert known[""].value <= high + 1e-9 and high <= possible / (2 * SIZE) + 1e-9


def test_the_estimate_is_that_of_the_samples_that_nothing_else_breaks() -> None:
    full = {"shapes": ["apgd-ce"] * 5 + [""] * 35, "digits": [""] * 40}
    cells = estimated("a", full, 30, eps="2.5/255")
    weak = ["apgd-ce"] * 5 + ["cw"] * 3 + [""] * 32
    found = [*cells, evidence("a", weak, "shapes", attack="cw", eps="2.5/255")]
    drawn = [sum(each.drawn) for each in cells]
    lost = sum(cells[0].drawn[5:8])
    expected = estimate_mean([CellDraws(40, 32, drawn[0] - lost, 0), CellDraws(40, 40, drawn[1], 0)])
    mean = known_estimates(found, (), SMALL, ())[""]
    assert (mean.value, *mean.full_attack) == pytest.approx((expected.value, *expected.full_attack))
    assert (mean.survivors, mean.drawn, mean.n) == (72, 30 - lost, 80)
    # A counterexample lowers both ends if its sample was drawn. If not, the full attack might break it too.
    for is_drawn in (True, False):
        place = next(n for n in range(8, 40) if cells[0].drawn[n] is is_drawn)
        less = known_estimates(found, [example(f"{place:04d}")], SMALL, ())[""]
        assert less.full_attack[0] == pytest.approx(mean.full_attack[0] - 1 / 80)
        assert less.full_attack[1] == pytest.approx(mean.full_attack[1] - is_drawn / 80)
    # At a larger radius, an estimate at a smaller radius breaks what it broke, and nothing is estimated.
    assert known_estimates(found, (), Threat("Linf", MINI.standard_eps), ()) == {}


@pytest.fixture
def board(tmp_path: Path) -> Board:
    full = {name: ["apgd-ce"] * 20 + [""] * 18 + ["square"] * 2 for name in MINI.datasets}
    wide = {name: ["apgd-ce"] * 10 + [""] * 30 for name in MINI.datasets}
    cells = [*estimated("a", full, 60), *estimated("a", wide, 50, eps="2.5/255")]
    write_board_entry(cells, tmp_path)
    write_board_entry([evidence("b", ["apgd-ce"] * 30 + [""] * 10, name) for name in MINI.datasets], tmp_path)
    return make_board("mini", tmp_path)


def test_every_view_of_a_board_marks_an_estimate_and_shows_both_intervals(board: Board, tmp_path: Path) -> None:
    row = next(each for each in board.rows if each.model == "a")
    text = "estimated: 60 of 260 survivors attacked in full, 1.4 times fewer passes"
    mean = row.estimates["robust"]
    assert mean.text == row.estimates["under_autoattack"].text == text
    assert (row.robust.value, row.robust.low, row.robust.high) == (mean.value, mean.low, mean.high)
    assert row.robust.low < mean.full_attack[0] < row.robust.value < mean.full_attack[1] < row.robust.high
    assert row.estimates["curve_2.5/255"].drawn == 50 and row.curve[0].robust.value == 0.75
    assert text in markdown(board) and markdown(board).count("estimated") == 1
    document = json.loads(json.dumps(board.to_json()))["rows"]
    assert next(each for each in document if each["model"] == "a")["estimates"]["robust"]["drawn"] == 60
    frame = board.to_pandas().set_index("model")
    assert frame.loc["a", "estimated"] == text and frame.loc["b", "estimated"] == ""
    assert frame.loc["a", "robust_full_attack_low"] == mean.full_attack[0]
    files = site_files([board])
    for name in ("mini/index.html", "mini/models/a.html", "mini/board.csv"):
        assert text in files[name]
    assert "estimated: " not in files["mini/models/b.html"]


def test_an_estimate_at_a_smaller_radius_does_not_change_a_full_number(tmp_path: Path) -> None:
    full = [evidence("a", ["apgd-ce"] * 20 + [""] * 20, name) for name in MINI.datasets]
    write_board_entry(full, tmp_path)
    before = make_board("mini", tmp_path).rows[0]
    small = estimated("a", {name: ["apgd-ce"] * 10 + [""] * 30 for name in MINI.datasets}, 50, eps="2.5/255")
    write_board_entry([*full, *small], tmp_path)
    after = make_board("mini", tmp_path).rows[0]
    assert (after.robust, after.datasets, after.under, after.rank) == (
        before.robust,
        before.datasets,
        before.under,
        before.rank,
    )
    assert after.curve[-1] == before.curve[-1] and set(after.estimates) == {"curve_2.5/255"}


def test_an_estimate_comes_after_full_numbers_that_tests_do_not_distinguish_from_it(tmp_path: Path) -> None:
    write_board_entry(estimated("lucky", {name: [""] * 40 for name in MINI.datasets}, 200), tmp_path)
    for model, robust in (("close", 39), ("weak", 20)):
        outcome = [""] * robust + ["apgd-ce"] * (40 - robust)
        write_board_entry([evidence(model, outcome, name) for name in MINI.datasets], tmp_path)
    rows = make_board("mini", tmp_path).rows
    assert [(each.model, each.rank) for each in rows] == [("close", "1-2"), ("lucky", "1-2"), ("weak", "3")]
    assert rows[1].robust.value > rows[0].robust.value and "robust" in rows[1].estimates
