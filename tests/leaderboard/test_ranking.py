"""The board: lowest known accuracy, ranks with ties, and the fields of a row, computed from made-up records."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import evidence, samples, write_board_entry

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core import download as downloads
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard import masking
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.entry import Counterexample, read_entry, write_entry
from robustbench_vlm.leaderboard.known_verdicts import mean_accuracy, worst_known
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.views import markdown
from robustbench_vlm.tracks import MINI

STANDARD = Threat("Linf", MINI.standard_eps)


def everywhere(model: str, broken: Sequence[str], **about: str) -> list[CellRecords]:
    """Return records of a model that have the same verdicts on every dataset of the track."""
    return [evidence(model, broken, dataset, **about) for dataset in MINI.datasets]


def board(folder: Path) -> Board:
    return make_board("mini", folder)


def row(folder: Path, model: str) -> BoardRow:
    return next(each for each in board(folder).rows if each.model == model)


def test_models_that_tests_do_not_distinguish_share_their_ranks(tmp_path: Path) -> None:
    # Each of the 13 datasets has 40 samples. The models have 4, 30 and 29 robust samples. The last two models differ in
    # many samples.
    for model, robust in (("weak", 4), ("good", 30), ("close", 29)):
        verdicts = [""] * robust + ["square"] * (40 - robust)
        write_board_entry(everywhere(model, verdicts[::-1] if model == "close" else verdicts), tmp_path)
    rows = board(tmp_path).rows
    assert [(each.model, each.rank) for each in rows] == [("good", "1-2"), ("close", "1-2"), ("weak", "3")]
    assert [each.robust.value for each in rows] == pytest.approx([0.75, 0.725, 0.1])
    assert rows[0].robust.n == 13 * 40 and rows[0].datasets["shapes"]["robust"].n == 40


def test_the_order_of_the_datasets_in_an_entry_changes_no_rank(tmp_path: Path) -> None:
    # A paired test distinguishes one sample fewer on every dataset. It would not if samples of different datasets were
    # paired.
    for model, most in (("better", 18), ("worse", 17)):
        counts = [most if n < 6 else most - 12 for n in range(13)]
        found = [
            evidence(model, [""] * count + ["square"] * (20 - count), dataset)
            for count, dataset in zip(counts, MINI.datasets, strict=True)
        ]
        write_board_entry(found[::-1] if model == "worse" else found, tmp_path)
    assert [(each.model, each.rank) for each in board(tmp_path).rows] == [("better", "1"), ("worse", "2")]


def test_datasets_that_are_not_on_the_track_are_refused(tmp_path: Path) -> None:
    write_board_entry([*everywhere("a", ["square"]), evidence("a", [""], "easy")], tmp_path)
    assert "'easy' is not a dataset of the track 'mini'" in board(tmp_path).refused["a"]


def test_rows_have_the_clean_rank_and_the_rank_difference(tmp_path: Path) -> None:
    write_board_entry(everywhere("robust", ["clean"] * 10 + [""] * 30), tmp_path)
    write_board_entry(everywhere("accurate", ["square"] * 39 + [""]), tmp_path)
    rows = {each.model: each for each in board(tmp_path).rows}
    assert (rows["robust"].rank, rows["robust"].clean_rank, rows["robust"].rank_difference) == ("1", 2, 1)
    assert (rows["accurate"].rank, rows["accurate"].clean_rank, rows["accurate"].rank_difference) == ("2", 1, -1)
    assert rows["robust"].clean.value == pytest.approx(0.75)


def test_the_citation_of_the_card_comes_before_the_known_papers(tmp_path: Path) -> None:
    card = {"name": "own", "architecture": "mini", "paper": "https://arxiv.org/abs/2402.12336"}
    citation = {"title": "Own", "authors": ["A. Author"], "venue": "ICLR", "year": 2025}
    write_board_entry(everywhere("own", ["", ""]), tmp_path, card={**card, "citation": citation})
    write_board_entry(everywhere("known", ["", "square"]), tmp_path, card={**card, "name": "known"})
    write_board_entry(everywhere("none", ["square"] * 2), tmp_path)
    found = {each.model: each.citation for each in board(tmp_path).rows}
    labels = {model: each.label if each else "" for model, each in found.items()}
    assert labels == {"own": "ICLR 2025", "known": "ICML 2024", "none": ""}


def test_every_recorded_attack_counts_sample_by_sample(tmp_path: Path) -> None:
    found = everywhere("both", ["", "", "square", "clean"])
    found += everywhere("both", ["", "pgd-20", "", "clean"], attack="pgd-20")
    # A sample that is broken within the smaller radius is broken within this one too.
    found += everywhere("both", ["pgd-20", "", "", "clean"], attack="pgd-20", eps="5/510")
    write_board_entry(found, tmp_path)
    both = row(tmp_path, "both")
    assert both.robust.value == 0 and both.clean.value == pytest.approx(0.75)
    assert {attack: each.value for attack, each in both.under.items()} == {"autoattack": 0.5, "pgd-20": 0.5}
    assert [(point.eps, point.robust.value) for point in both.curve] == [("2.5/255", 0.5), ("5/255", 0.0)]
    assert [point.attacks for point in both.curve] == [("pgd-20",), ("autoattack", "pgd-20")]


def test_a_break_at_a_larger_radius_does_not_count_at_a_smaller_one(tmp_path: Path) -> None:
    found = everywhere("a", ["", "", ""]) + everywhere("a", ["square"] * 3, eps="10/255")
    write_board_entry(found, tmp_path)
    assert row(tmp_path, "a").robust.value == 1


@pytest.mark.parametrize(("distance", "left"), [(5 / 255, 3), (5 / 255 + 1e-8, 3), (6 / 255, 4)])
def test_a_counterexample_within_the_radius_lowers_the_number(distance: float, left: int, tmp_path: Path) -> None:
    example = Counterexample("shapes", "0001", "Linf", distance, 2, "0" * 64)
    write_board_entry(everywhere("a", [""] * 4), tmp_path, counterexamples=(example,))
    found = row(tmp_path, "a")
    assert found.datasets["shapes"]["robust"].value == left / 4 and found.counterexamples == 1
    assert found.datasets["colours"]["robust"].value == 1


def test_an_entry_without_the_complete_attack_has_no_rank(tmp_path: Path) -> None:
    write_board_entry(everywhere("whole", ["", "square"]), tmp_path)
    write_board_entry(everywhere("part", [""] * 2)[1:], tmp_path)
    write_board_entry(everywhere("weakly", [""] * 2, attack="pgd-20"), tmp_path)
    assert [(each.model, each.rank) for each in board(tmp_path).rows] == [("whole", "1"), ("part", ""), ("weakly", "")]


def test_warnings_name_their_datasets(tmp_path: Path) -> None:
    found = everywhere("a", ["", "square"])
    found[0] = evidence("a", ["", "square"], "shapes", warnings=("zero-gradient:2", "collapsed"))
    found[1] = evidence("a", ["", "square"], "colours", warnings=("zero-gradient:1",))
    write_board_entry(found, tmp_path)
    assert row(tmp_path, "a").warnings == ("collapsed: shapes", "zero-gradient: shapes, colours")


@pytest.mark.parametrize(
    ("warning", "stronger", "rank"),
    [
        ("black-box-wins:1", False, "1"),
        ("black-box-wins:2", False, ""),
        ("black-box-wins:2", True, "1"),
        ("rises-with-eps", False, ""),
        ("targeted-dlr-needs-4-classes:10", False, "1"),
    ],
)
def test_a_model_with_masking_warnings_needs_a_stronger_attack(
    warning: str, stronger: bool, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "stronger"
    attack = dataclasses.replace(load_attack("pgd-20"), name=name, strength=10**9)
    monkeypatch.setattr(masking, "load_attack", lambda each: attack if each == name else load_attack(each))
    broken = ["", "square"] * 5
    found = everywhere("a", broken)
    found[0] = evidence("a", broken, "shapes", warnings=(warning,))
    found += [evidence("a", broken, "shapes", attack=name)] if stronger else []
    write_board_entry(found, tmp_path)
    assert row(tmp_path, "a").rank == rank


def test_an_invalid_entry_is_left_out_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mini"
    write_board_entry(everywhere("a", [""]), folder).rename(folder / "b.json")
    other = read_entry(write_board_entry(everywhere("d", [""]), tmp_path / "other"))
    write_board_entry(everywhere("c", [""]), folder, history=other.history)
    write_board_entry(everywhere("good_", [""]), folder)
    found = board(folder)
    assert [each.model for each in found.rows] == ["good_"] and sorted(found.refused) == ["b", "c"]
    assert "move it to mini/a.json" in found.refused["b"] and "digests of other results" in found.refused["c"]
    assert "Left out, because the entries are invalid: b, c." in markdown(found)
    assert run_command(["leaderboard", "build", "--folder", str(tmp_path), "--site", str(tmp_path / "site")]) == 0
    assert "invalid: b, c." in (tmp_path / "site" / "mini" / "index.html").read_text(encoding="utf-8")
    capsys.readouterr()
    strange = folder / "counterexamples" / f"{'0' * 64}.safetensors"
    strange.parent.mkdir()
    strange.write_bytes(b"anything")
    assert run_command(["leaderboard", "check", "--folder", str(tmp_path), "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["unnamed"] == [str(strange)]
    assert json.loads(printed.out)["refused"] == ["mini/b.json", "mini/c.json"] and "mini/a.json" in printed.err


def test_one_model_has_one_entry(tmp_path: Path) -> None:
    write_board_entry(everywhere("a", [""]), tmp_path)
    write_board_entry(everywhere("b", [""], weights=fingerprint("a")), tmp_path)
    found = board(tmp_path)
    assert [each.model for each in found.rows] == ["a"]
    assert "'a' and 'b' have the same weights" in found.refused["b"]


def test_a_new_entry_cannot_remove_an_established_entry(tmp_path: Path) -> None:
    write_board_entry(everywhere("Fare", [""]), tmp_path, "reproduced")
    write_board_entry(everywhere("fare", [""]), tmp_path, date="2020-01-01")
    assert [each.model for each in board(tmp_path).rows] == ["Fare"]


def test_an_entry_whose_records_cannot_be_downloaded_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "WAITS", (0.0,))
    folder = tmp_path / "mini"
    write_board_entry(everywhere("here", [""]), folder)
    path = write_board_entry(everywhere("gone_", [""]), folder)
    records = read_entry(path).records
    (folder / records.file).unlink()
    assert "the records of 'gone_' are not at" in board(folder).refused["gone_"]
    # No server listens on this port.
    address = dataclasses.replace(records, url="https://127.0.0.1:9/gone.parquet")
    write_entry(dataclasses.replace(read_entry(path), records=address), path)
    found = board(folder)
    assert [each.model for each in found.rows] == ["here"] and "127.0.0.1:9" in found.absent["gone_"]
    assert r"Left out, because their records cannot be downloaded: gone\_." in markdown(found)
    assert run_command(["leaderboard", "check", "--folder", str(tmp_path)]) == 1
    assert "left out: the records of 'gone_' cannot be downloaded" in capsys.readouterr().err.replace("\n", " ")


def test_an_empty_folder_is_an_empty_board(tmp_path: Path) -> None:
    assert board(tmp_path).rows == ()


VERDICTS = st.sampled_from(["", "clean", "square", "apgd-ce"])


@given(st.lists(st.tuples(VERDICTS, VERDICTS, VERDICTS), min_size=1, max_size=12))
def test_more_records_never_raise_the_number(rows: list[tuple[str, str, str]]) -> None:
    # A sample that is misclassified without an attack is so in every record.
    columns = [["clean" if "clean" in verdicts else verdicts[n] for verdicts in rows] for n in range(3)]
    found = [
        evidence("a", columns[0]),
        evidence("a", columns[1], attack="pgd-20"),
        evidence("a", columns[2], attack="cw", eps="5/510"),
    ]
    numbers = [sum(worst_known(found[:count], (), STANDARD)["shapes"].robust) for count in (1, 2, 3)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[2] == sum(all(verdict == "" for verdict in verdicts) for verdicts in zip(*columns, strict=True))


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5))
def test_the_mean_is_over_datasets(strata: list[list[bool]]) -> None:
    found = mean_accuracy(strata)
    assert found.value == pytest.approx(sum(sum(each) / len(each) for each in strata) / len(strata))
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.n == sum(map(len, strata))


def test_attacks_in_other_norms_do_not_count() -> None:
    found = [evidence("a", ["", ""]), dataclasses.replace(evidence("a", ["square"] * 2, norm="L2", eps="1/100"))]
    assert worst_known(found, (), STANDARD)["shapes"].robust == (True, True)
    assert worst_known(found, (), Threat("L2", parse_eps("1/100")))["shapes"].robust == (False, False)
    assert [each.sample_id for each in samples(["", ""])] == list(worst_known(found, (), STANDARD)["shapes"].ids)
