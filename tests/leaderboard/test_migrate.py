"""Migration from version 0.1: names change, verdicts do not, and a wrong fingerprint stops the migration."""

import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.leaderboard import migrate
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records, read_rows
from robustbench_vlm.leaderboard.migrate import migrate_file
from robustbench_vlm.leaderboard.validate import check_history

_PATHS = {algorithm: path for path, algorithm in migrate._ALGORITHMS.items()}


def _backwards(names: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    old = {new: name for name, new in names.items()}
    return {old.get(key, key): value for key, value in values.items()}


def _card_of_0_1(card: dict[str, Any]) -> dict[str, Any]:
    training = {key: value for key, value in card["training"].items() if key != "defense_version"}
    training = _backwards(migrate._TRAINING, training)
    if "schedule" in training:
        training["schedule"] = _backwards({"rate": "lr", "batch": "batch_size"}, training["schedule"])
    if "weight_decay" in card["training"]:
        training["decay"] = card["training"]["weight_decay"]
    if "fingerprint" in training:
        known = {key: value for key, value in training.items() if key not in migrate._NOT_IDENTITY}
        training["fingerprint"] = fingerprint(known)
    return {**card, "training": training}


def _entry_of_format_2(values: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with the status and the events that were stored before events had digests."""
    events = [event for event in values["history"] if event["kind"] == "earlier"]
    history = [
        {
            **{"date": event["date"], "status": event["facts"]["status"], "what": event["what"]},
            "facts": {key: value for key, value in event["facts"].items() if key != "status"},
        }
        for event in events
    ]
    return {**values, "format": 2, "status": "reproduced", "history": history}


def entry_of_0_1(model: str, folder: Path) -> Path:
    """Write a bundled entry and its records in the format of version 0.1, and return the entry's path."""
    source = board_folder("mini")
    values = json.loads((source / f"{model}.json").read_text())
    (folder / "records").mkdir()
    records = folder / values["records"]["file"]
    records.write_bytes((source / values["records"]["file"]).read_bytes())
    values = _entry_of_format_2(values)
    values["format"] = 1
    values["history"] = [event for event in values["history"] if "to format" not in event["facts"]]
    values["card"] = _card_of_0_1(values["card"])
    values["protocol"]["identity"] = _backwards(migrate._PROTOCOL, values["protocol"]["identity"])
    for stages in values["attacks"].values():
        for stage in stages:
            algorithm = stage.pop("algorithm")
            del stage["version"]
            stage["function"] = _PATHS[algorithm]
            stage["parameters"] = _backwards(migrate._PARAMETERS.get(algorithm, {}), stage["parameters"])
    rows = read_rows(records, sum(cell["score"]["n"] for cell in values["cells"]))
    for number, cell in enumerate(values["cells"]):
        ids = [row.sample_id for row in rows[number][0]]
        identity = migrate._identity(values, cell, values["attacks"], values["protocol"], ids)
        cell["fingerprint"] = fingerprint(identity)
    path = folder / f"{model}.json"
    path.write_text(json.dumps(values))
    return path


def test_an_entry_of_0_1_gets_the_current_names_and_keeps_its_verdicts(tmp_path: Path) -> None:
    path = entry_of_0_1("sim-clip", tmp_path)
    before = {child: child.read_bytes() for child in (tmp_path / "records").iterdir()}
    assert migrate_file(path, date="2026-11-26")
    entry, bundled = read_entry(path), read_entry(board_folder("mini") / "sim-clip.json")
    assert (entry.cells, entry.attacks, entry.protocol) == (bundled.cells, bundled.attacks, bundled.protocol)
    assert entry.status == "reproduced" and "status" not in json.loads(path.read_text())
    assert [event.facts["to format"] for event in entry.history if "to format" in event.facts] == [2, 3]
    check_history(entry)
    assert entry.card == bundled.card
    assert {child: child.read_bytes() for child in (tmp_path / "records").iterdir()} == before
    assert sum(len(each.results) for each in read_entry_records(entry, tmp_path)) == 23400
    assert not migrate_file(path, date="2026-11-26")


@pytest.mark.parametrize(
    ("status", "facts", "migrated"),
    [
        ("claimed", {}, "claimed"),
        ("reproduced", {"bound": 0.0149, "seed": 3}, "reproduced"),
        ("reproduced", {"bound": 0.45, "seed": 3}, "claimed"),
        ("verified", {"bound": 0.0, "seed": 3}, "verified"),
        ("disputed", {"problems": ["other weights"]}, "disputed"),
    ],
)
def test_the_status_of_format_2_is_kept_if_its_bound_allows_it(
    status: str, facts: dict[str, Any], migrated: str, tmp_path: Path
) -> None:
    values = _entry_of_format_2(json.loads((board_folder("mini") / "clip.json").read_text()))
    event = {"date": "2026-11-20", "status": status, "what": "found", "facts": facts}
    path = tmp_path / "clip.json"
    path.write_text(json.dumps({**values, "status": status, "history": [event]}))
    assert migrate_file(path, date="2026-11-26") and not migrate_file(path, date="2026-11-26")
    entry = read_entry(path)
    check_history(entry)
    assert entry.status == migrated and entry.history[0].facts == {**facts, "status": status}


@pytest.mark.parametrize("place", ["cell", "stage", "card", "content"])
def test_nothing_is_migrated_if_an_old_fingerprint_does_not_match(place: str, tmp_path: Path) -> None:
    path = entry_of_0_1("sim-clip", tmp_path)
    values = json.loads(path.read_text())
    if place == "cell":
        values["cells"][3]["fingerprint"] = "0" * 64
    elif place == "stage":
        values["attacks"]["autoattack"][0]["parameters"]["steps"] = 10
    elif place == "card":
        values["card"]["training"]["eps"] = "1/255"
    else:
        values["cells"][0]["content"] = "0" * 64
    path.write_text(json.dumps(values))
    before = path.read_bytes()
    with pytest.raises(UserError, match="not migrated"):
        migrate_file(path, date="2026-11-26")
    assert path.read_bytes() == before


def test_an_entry_of_a_test_time_defense_is_refused(tmp_path: Path) -> None:
    path = entry_of_0_1("sim-clip", tmp_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "model": "ttc+sim-clip"}))
    with pytest.raises(UserError, match=r"'ttc\+sim-clip' is a test-time defense, .* run and submit it again"):
        migrate_file(path, date="2026-11-26")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 4}, "has format 4, expected 1 or 2"),
        ({"note": 5}, "the migrated entry .* note: "),
        ({"records": {"file": "records/none.parquet", "sha256": "0" * 64, "url": ""}}, "does not give a URL for them"),
    ],
)
def test_an_entry_that_would_be_invalid_is_not_written(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = entry_of_0_1("sim-clip", tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    before = path.read_bytes()
    with pytest.raises(UserError, match=said):
        migrate_file(path, date="2026-11-26")
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cells": 3, "format": 1}', '{"training": 3}'])
def test_other_files_are_refused_and_not_changed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"version 0\.1"):
        migrate_file(path, date="2026-11-26")
