"""Static validation of entries: contradictions, definitions of another package, changed histories."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from made_up_results import attested, evidence, samples, write_board_entry
from pyarrow import parquet

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, sha256_of
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell_records import Unsound
from robustbench_vlm.leaderboard.counterexamples import images_file, images_path
from robustbench_vlm.leaderboard.definitions import check_definitions
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.validate import (
    check_continuation,
    check_entry,
    check_history,
    read_entry_in_place,
)
from robustbench_vlm.tracks import MINI

BOARD = package_folder("leaderboards") / "mini"
EXAMPLE = Counterexample("shapes", "0001", "Linf", 0.01, 2, "0" * 64)


def _later(entry: Entry) -> Entry:
    """Return the entry after a new submission."""
    return entry.after("2026-02-01", "submission", "submitted again")


@pytest.mark.parametrize("path", sorted(BOARD.glob("*.json")), ids=lambda path: path.stem)
def test_the_bundled_entries_are_valid(path: Path) -> None:
    entry = read_entry_in_place(path)
    check_definitions(entry, check_entry(entry, BOARD))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"broken_by": "", "clean_prediction": 2}, "has a clean verdict that contradicts its prediction"),
        ({"broken_by": "clean"}, "has a clean verdict that contradicts its prediction"),
        ({"adversarial_prediction": 1}, "is robust, but its prediction is wrong"),
        ({"broken_by": "square"}, "is broken, but its prediction is correct"),
        ({"broken_by": "magic", "adversarial_prediction": 1}, "by an unknown stage"),
        ({"distance": 0.02}, "outside the radius"),
        ({"distance": -0.1}, "outside the radius"),
        ({"distance": float("inf")}, "has a margin or a distance that is NaN or infinite"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    robust: SampleResult = samples([""])[0]
    assert robust.label == 0 and robust.clean_prediction == 0
    with pytest.raises(Unsound, match=f"contradict themselves: 0000 .*{message}"):
        evidence("a", [""], results=[dataclasses.replace(robust, **changes)])


def test_a_score_of_another_radius_or_number_of_classes_is_refused(tmp_path: Path) -> None:
    for changes in ({"eps": "9/255"}, {"classes": 999}):
        entry = read_entry(write_board_entry([evidence("a", ["", "square"])], tmp_path))
        cell = dataclasses.replace(entry.cells[0], score=dataclasses.replace(entry.cells[0].score, **changes))
        with pytest.raises(Unsound, match="different accuracies"):
            check_entry(dataclasses.replace(entry, cells=(cell,)), tmp_path)


def _changed(entry: Entry, name: str, key: str, value: object) -> Entry:
    return dataclasses.replace(entry, **{name: {**getattr(entry, name), key: value}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: {**each, "protocol": {"name": "mini", "samples": 1}}, "the protocol mini/1 of the entry differs"),
        (
            lambda each: {**each, "attack": {**each["attack"], "stages": each["attack"]["stages"][:1]}},
            "the attack autoattack of the entry differs",
        ),
        (lambda each: {**each, "classes": [*each["classes"][:-1], "x"]}, "the classes or prompts"),
        (lambda each: {**each, "prompts": [*each["prompts"][:-1], "x"]}, "the classes or prompts"),
    ],
)
def test_definitions_that_differ_from_this_package_are_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    entry = read_entry(BOARD / "clip.json")
    whole = check_entry(entry, BOARD)[0]
    other = dataclasses.replace(whole, identity=change(dict(whole.identity)))
    if message.startswith("the protocol"):
        identity = dataclasses.replace(entry.protocol, identity=other.identity["protocol"])
        entry = dataclasses.replace(entry, protocol=identity)
    with pytest.raises(Unsound, match=message):
        check_definitions(entry, [other])
    fewer = dataclasses.replace(whole, score=dataclasses.replace(whole.score, n=199))
    with pytest.raises(Unsound, match="199 samples, but the protocol requires 200"):
        check_definitions(read_entry(BOARD / "clip.json"), [fewer])


@pytest.mark.parametrize(
    ("key", "value"),
    [("paper", "https://example.org"), ("licence", "mine"), ("training", {"eps": "1/255"}), ("architecture", "other")],
)
def test_a_card_that_differs_from_the_model_zoo_is_refused(key: str, value: object) -> None:
    entry = read_entry(BOARD / "clip.json")
    evidence = check_entry(entry, BOARD)
    check_definitions(_changed(entry, "card", "notes", "other words"), evidence)
    with pytest.raises(Unsound, match=f"the card of 'clip' differs from its card in the model zoo in {key}"):
        check_definitions(_changed(entry, "card", key, value), evidence)


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_id": "nobody"},
        {"dataset": "none"},
        {"prediction": 1},
        {"sample_id": "0002"},
        {"distance": 0.0},
    ],
)
def test_a_counterexample_that_breaks_no_sample_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    found = [evidence("a", ["", "", "clean"])]
    entry = read_entry(write_board_entry(found, tmp_path, counterexamples=(EXAMPLE,)))
    assert len(check_entry(entry, tmp_path)) == 1
    wrong = dataclasses.replace(entry, counterexamples=(dataclasses.replace(EXAMPLE, **changes),))
    with pytest.raises(Unsound, match="the counterexample"):
        check_entry(wrong, tmp_path)


def _continue(entry: Entry, earlier: Entry | None, folder: Path) -> None:
    check_entry(entry, folder)
    check_continuation(entry, earlier, folder)


def test_a_submission_continues_the_earlier_entry(tmp_path: Path) -> None:
    earlier = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path, counterexamples=(EXAMPLE,)))
    _continue(dataclasses.replace(earlier, counterexamples=()), None, tmp_path)
    _continue(_later(earlier), earlier, tmp_path)
    other = dataclasses.replace(earlier, weights="1" * 64)
    check_continuation(_later(other), earlier, tmp_path)
    rewritten = dataclasses.replace(earlier, history=()).after("2026-02-01", "submission", "first")
    for forged, message in (
        (rewritten, "the history of the earlier entry"),
        (attested(_later(earlier), date="2026-02-01"), "a submission must not add the event 'made up'"),
        (earlier.after("2026-02-01", "earlier", "verified", {"status": "verified"}), "must not add the event"),
        (earlier.after("2026-02-01", "migration", "migrated"), "must not add a migration"),
        (dataclasses.replace(_later(earlier), counterexamples=()), "the counterexample shapes / 0001 of the earlier"),
    ):
        with pytest.raises(Unsound, match=message):
            _continue(forged, earlier, tmp_path)
    with pytest.raises(Unsound, match="the counterexample shapes / 0001 of the earlier"):
        check_continuation(dataclasses.replace(_later(other), counterexamples=()), earlier, tmp_path)
    with pytest.raises(Unsound, match="a submission must not add the event"):
        _continue(attested(dataclasses.replace(earlier, counterexamples=())), None, tmp_path)


def test_a_changed_history_breaks_the_chain(tmp_path: Path) -> None:
    entry = attested(_later(read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path))), date="2026-02-01")
    check_entry(entry, tmp_path)
    first, second, last = entry.history
    for history in (
        (dataclasses.replace(first, what="nicer"), second, last),
        (second, last),
        (first, last),
        (second, first, last),
        (first, dataclasses.replace(second, previous=""), last),
    ):
        with pytest.raises(Unsound, match="does not have the digest of the event before it"):
            check_entry(dataclasses.replace(entry, history=history), tmp_path)
    with pytest.raises(Unsound, match="must have an attestation exactly if its kind is"):
        check_entry(entry.after("2026-02-01", "attestation", "trust me"), tmp_path)


@pytest.mark.parametrize("change", ["records", "weights", "protocol", "warnings"])
def test_evidence_does_not_count_for_other_results(change: str, tmp_path: Path) -> None:
    before = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path, "verified"))
    cell = before.cells[0]
    changed = {
        "records": {"cells": (dataclasses.replace(cell, content="0" * 64),)},
        "weights": {"weights": "0" * 64},
        "protocol": {"protocol": dataclasses.replace(before.protocol, identity={"name": "other"})},
        "warnings": {"cells": (dataclasses.replace(cell, score=dataclasses.replace(cell.score, warnings=("x",))),)},
    }[change]
    other = dataclasses.replace(before, **changed)
    assert before.status == "verified" and other.status == "claimed"
    # The last event must have the digests of the entry, so an event cannot be left out.
    with pytest.raises(Unsound, match="digests of other results"):
        check_history(other)
    check_history(_later(other))


@pytest.fixture
def verified(tmp_path: Path) -> Entry:
    """Return an entry of 200 robust samples with the status "verified"."""
    return read_entry(write_board_entry([evidence("a", [""] * 200)], tmp_path, "verified"))


def _broken(entry: Entry, count: int, folder: Path, *, with_file: bool = True) -> Entry:
    """Return the entry after a dispute that broke a number of samples, with or without the file of their images."""
    examples = [Counterexample("shapes", f"{n:04d}", "Linf", 0.01, (n + 1) % 3, "") for n in range(count)]
    source, content = images_file("mini", [(each, torch.full((3, 4, 4), 0.5)) for each in examples])
    path = images_path(folder, source)
    assert path is not None
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if with_file:
        path.write_bytes(content)
    own = [dataclasses.replace(each, source=source) for each in examples]
    return entry.with_counterexamples(own).after("2026-02-01", "counterexamples", "broken", {"images": source})


def test_a_dispute_needs_images_and_changes_the_status_only_above_the_tolerance(
    verified: Entry, tmp_path: Path
) -> None:
    for count, status in ((1, "verified"), (50, "disputed")):
        found = _broken(verified, count, tmp_path)
        _continue(found, verified, tmp_path)
        assert found.status == status
        with pytest.raises(Unsound, match="lacks an image"):
            _continue(_broken(verified, count, tmp_path, with_file=False), verified, tmp_path)


def test_a_nearer_counterexample_replaces_an_earlier_one(tmp_path: Path) -> None:
    earlier = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path, counterexamples=(EXAMPLE,)))
    nearer = dataclasses.replace(EXAMPLE, distance=0.005)
    source, content = images_file("mini", [(nearer, torch.zeros(3, 4, 4))])
    (tmp_path / "counterexamples").mkdir()
    (tmp_path / "counterexamples" / f"{source}.safetensors").write_bytes(content)
    nearer = dataclasses.replace(nearer, source=source)
    _continue(_later(earlier.with_counterexamples([nearer])), earlier, tmp_path)
    farther = dataclasses.replace(earlier, counterexamples=(dataclasses.replace(nearer, distance=0.015),))
    with pytest.raises(Unsound, match="the counterexample shapes / 0001 of the earlier"):
        _continue(_later(farther), earlier, tmp_path)


@pytest.mark.parametrize("forged", ["other bytes", "no images", "another sample"])
def test_image_files_that_do_not_match_their_counterexamples_are_refused(forged: str, tmp_path: Path) -> None:
    source, content = images_file("mini", [(EXAMPLE, torch.zeros(3, 4, 4))])
    if forged == "other bytes":
        content = images_file("mini", [(EXAMPLE, torch.ones(3, 4, 4))])[1]
    elif forged == "no images":
        content = b"<html>"
    sample = "0000" if forged == "another sample" else EXAMPLE.sample_id
    example = dataclasses.replace(EXAMPLE, source=source, sample_id=sample, prediction=2)
    path = write_board_entry([evidence("a", ["", ""])], tmp_path, counterexamples=(example,))
    (tmp_path / "counterexamples").mkdir()
    (tmp_path / "counterexamples" / f"{source}.safetensors").write_bytes(content)
    message = {
        "other bytes": "does not match the digest in its name",
        "no images": "not a file of",
        "another sample": "has no image of shapes",
    }
    with pytest.raises(Unsound, match=message[forged]):
        check_entry(read_entry(path), tmp_path)


def test_a_small_file_with_many_rows_is_not_decompressed(tmp_path: Path) -> None:
    entry = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path))
    path = tmp_path / entry.records.file
    table = parquet.read_table(path)
    bomb = pyarrow.concat_tables([table] * 20_000).combine_chunks()
    parquet.write_table(bomb, path, compression="zstd")
    swollen = dataclasses.replace(entry, records=dataclasses.replace(entry.records, sha256=sha256_of(path)))
    with pytest.raises(Unsound, match="the columns or the number of rows are not the exp"):
        check_entry(swollen, tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": NaN}', '{"format": 1e999}'])
def test_invalid_or_deeply_nested_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="the entry"):
        read_entry(tmp_path / "a.json")


@pytest.mark.parametrize("training", ["x", {"eps": "1/0"}, {"eps": ["a"]}, {"dataset": {}}])
def test_a_card_with_invalid_training_is_refused_or_shown(training: object, tmp_path: Path) -> None:
    card = {"name": "a", "architecture": "mini", "training": training}
    write_board_entry([evidence("a", ["", ""], dataset) for dataset in MINI.datasets], tmp_path, card=card)
    if isinstance(training, dict):
        assert len(make_board("mini", tmp_path).rows) == 1
    else:
        assert re.search(
            r"the card of .*: training: Input should be an object", make_board("mini", tmp_path).refused["a"]
        )


def test_a_disputed_entry_has_no_rank_and_names_must_differ_in_more_than_case(tmp_path: Path) -> None:
    found = [evidence("a", ["", ""], dataset) for dataset in MINI.datasets]
    path = write_board_entry(found, tmp_path)
    assert make_board("mini", tmp_path).rows[0].rank == "1"
    write_entry(attested(read_entry(path), "contradicted"), path)
    assert make_board("mini", tmp_path).rows[0].rank == ""
    write_board_entry(found, tmp_path)
    for model, broken in (("A", ["", ""]), ("b", [""])):
        cells = [evidence(model, broken, name) for name in MINI.datasets]
        write_board_entry(cells, tmp_path, date="2026-01-02")
    board = make_board("mini", tmp_path)
    assert [row.model for row in board.rows] == ["a"]
    assert "'a' and 'A' differ only in upper and lower case" in board.refused["A"]
    assert "'a' and 'b' have different samples of 'shapes'" in board.refused["b"]


def test_options_that_exclude_each_other_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(BOARD / "clip.json")
    assert run_command(["verify", path, "--samples", "0"]) == 2
    assert "must be a positive integer, got 0" in capsys.readouterr().err
    assert run_command(["verify", path, "--since", path]) == 2 and "--since needs --check" in capsys.readouterr().err
    assert run_command(["verify", path, "--check", "--since", path]) == 0
    misplaced = tmp_path / "other.json"
    misplaced.write_bytes((BOARD / "clip.json").read_bytes())
    assert run_command(["verify", str(misplaced), "--check"]) == 1
    assert "move it to mini/clip.json" in capsys.readouterr().out


def test_only_reproduced_new_records_end_a_dispute(tmp_path: Path) -> None:
    entry = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path))
    disputed = attested(entry, "contradicted")
    # A later draw from the same records may miss what the first draw found.
    for again in (_later(disputed), attested(disputed, is_full=True)):
        assert again.status == "disputed"
    changed = dataclasses.replace(disputed, cells=(dataclasses.replace(disputed.cells[0], content="0" * 64),))
    assert _later(changed).status == "disputed"
    assert attested(_later(changed), bound=0.2).status == "disputed"
    assert attested(_later(changed)).status == "reproduced"


def test_the_status_follows_from_bounds_datasets_and_machines(tmp_path: Path) -> None:
    found = [evidence("a", ["", ""], dataset) for dataset in ("shapes", "colours")]
    entry = read_entry(write_board_entry(found, tmp_path))
    one, two = {"machine": "1" * 32}, {"machine": "2" * 32}
    for attestations, status in (
        ([{"bound": 0.051}], "claimed"),
        ([{"bound": 0.05}], "reproduced"),
        ([one, one], "reproduced"),
        ([one, two], "verified"),
        ([{"is_full": True, "bound": 0.0}], "verified"),
        ([{"machine": ""}, one], "reproduced"),
        ([{"datasets": ("shapes",)}], "claimed"),
        ([{"datasets": ("shapes",)}, {"datasets": ("colours",)}], "reproduced"),
        ([{"datasets": ("shapes",), "is_full": True}, {"datasets": ("colours",)}], "reproduced"),
        ([{"datasets": ("shapes",), "is_full": True}, one, two], "verified"),
        ([{"datasets": ("shapes",), "is_full": True}, {"datasets": ("colours",), "is_full": True}], "verified"),
    ):
        after = entry
        for fields in attestations:
            after = attested(after, **fields)
        assert after.status == status, attestations


def test_an_entry_without_a_robust_sample_is_valid(tmp_path: Path) -> None:
    found = [evidence("a", ["clean", "clean"])]
    check_continuation(read_entry(write_board_entry(found, tmp_path)), None, tmp_path)


@pytest.mark.parametrize("date", ["9999-99-99", "9999-12-31", "2020-01-01"])
def test_a_history_must_be_chronological(date: str, tmp_path: Path) -> None:
    entry = read_entry(write_board_entry([evidence("a", ["", ""])], tmp_path))
    with pytest.raises(Unsound, match="the history of 'a"):
        check_entry(entry.after(date, "submission", "again"), tmp_path)
