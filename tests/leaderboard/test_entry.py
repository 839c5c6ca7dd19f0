"""Entry files: an entry is read back as written, byte by byte, and every other file is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_results import evidence, write_board_entry

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.strict_json import STRICT
from robustbench_vlm.leaderboard.entry import (
    Entry,
    board_folder,
    entry_paths,
    entry_schema,
    read_entry,
    write_entry,
)
from robustbench_vlm.leaderboard.history import MAX_TEXT


@pytest.mark.parametrize("path", entry_paths(board_folder("mini")), ids=lambda path: path.stem)
def test_reading_and_writing_a_bundled_entry_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_entry(read_entry(path), tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_field_is_required_by_the_schema_and_by_the_reader(tmp_path: Path) -> None:
    path = write_board_entry([evidence("a", ["", ""])], tmp_path)
    values = json.loads(path.read_text())
    # Only entries with estimated runs have the field "estimates".
    names = [field.name for field in dataclasses.fields(Entry) if field.name != "estimates"]
    schema = entry_schema()
    assert schema["required"] == names == list(values) and schema["additionalProperties"] is False
    assert schema["properties"]["links"]["additionalProperties"] is False
    assert schema["properties"]["card"]["description"] == "The model card as JSON."
    assert "use_attribute_docstrings" not in STRICT, "docstrings slow every command that reads an entry"
    for name in names:
        path.write_text(json.dumps({key: value for key, value in values.items() if key != name}))
        with pytest.raises(UserError, match=f"a.json: {name}: this field is required"):
            read_entry(path)


def test_an_entry_of_an_earlier_format_is_refused_with_the_command_that_migrates_it(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "a.json").write_text(f'{{"format": {number}}}')
        with pytest.raises(UserError, match=r"format 3 is expected: run `vlmbench leaderboard migrate .*a\.json`"):
            read_entry(tmp_path / "a.json")


LONG = "x" * (MAX_TEXT + 1)
SUBJECT = dict.fromkeys(("weights", "protocol", "records"), "0" * 64)
EVENT = {
    **{"date": "2026-01-01", "kind": "submission", "what": "", "facts": {}, "subject": SUBJECT},
    **{"previous": "0" * 64, "attestation": None, "signature": ""},
}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda entry: entry.update(note=LONG), "note"),
        (lambda entry: entry["links"].update(code=LONG), "links/code"),
        (lambda entry: entry["links"].update(home="https://example.org"), "links/home"),
        (lambda entry: entry["history"][0]["facts"].update(text=LONG), "history/0/facts"),
        (lambda entry: entry["history"][0]["facts"].update({LONG: 1}), "history/0/facts"),
        (lambda entry: entry["history"][0]["facts"].update(problems=["", [LONG]]), "history/0/facts"),
        (lambda entry: entry["history"].append({**EVENT, "what": LONG}), "history/1/what"),
        (lambda entry: entry["history"].append({**EVENT, "date": "2026-01-01\n"}), "history/1/date"),
        (lambda entry: entry["history"].append({**EVENT, "kind": "verified"}), "history/1/kind"),
        (lambda entry: entry["history"].append({**EVENT, "status": "verified"}), "history/1/status: unknown field"),
        (lambda entry: entry.update(status="verified"), "status: unknown field"),
        (lambda entry: entry["environment"].append({"machine": {"name": LONG}}), "environment/0"),
        (lambda entry: entry["cells"][0]["score"].update(n=True), "cells/0/score/n"),
        (lambda entry: entry["cells"][0]["score"].update(n="2"), "cells/0/score/n"),
        (lambda entry: entry["cells"][0]["score"].update(clean="0.5"), "cells/0/score/clean"),
        (lambda entry: entry["cells"][0]["score"].update(more=1), "cells/0/score/more: unknown field"),
        (lambda entry: entry["cells"][0]["score"].update(clean_interval=[0, 1, 1]), "cells/0/score/clean_interval"),
        (lambda entry: entry["cells"][0]["threat"].update(eps="1/0"), "cells/0/threat/eps"),
        (lambda entry: entry["cells"][0]["threat"].update(norm="L3"), "cells/0/threat/norm"),
        (lambda entry: entry["cells"][0].update(content="0" * 64 + "\n"), "cells/0/content"),
        (lambda entry: entry["card"].pop("architecture"), "card: the card must have the field 'architecture'"),
        (lambda entry: entry["datasets"].clear(), "datasets"),
        (lambda entry: entry["datasets"]["shapes"].update(classes=["a"]), "datasets/shapes/classes"),
        (lambda entry: entry["attacks"].update(autoattack=[]), "attacks/autoattack"),
        (lambda entry: entry.update(counterexamples=None), "counterexamples"),
    ],
)
def test_a_value_outside_its_limits_is_refused_with_its_place(
    change: Callable[[dict[str, Any]], Any], place: str, tmp_path: Path
) -> None:
    path = write_board_entry([evidence("a", ["", ""])], tmp_path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"^the entry .*a.json: {place}.*`vlmbench submit` writes entries"):
        read_entry(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"note": ""', '"note": "", "note": "other"', "repeats the key"),
        ('"note": ""', '"note": "\\ud83d"', "lone surrogate"),
        ('"facts": {}', '"facts": {"a": NaN}', "NaN"),
        ('"facts": {}', '"facts": {"a": -Infinity}', "Infinity"),
        ('"facts": {}', '"facts": {"a": 1e999}', "larger than any"),
        ('"facts": {}', '"facts": {"a": 1' + "0" * 400 + "}", "more than 64 bits"),
        ('"facts": {}', '"facts": {"a": ' + "[" * 13 + "]" * 13 + "}", "nested deeper than"),
    ],
)
def test_json_that_readers_understand_differently_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = write_board_entry([evidence("a", ["", ""])], tmp_path)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=said):
        read_entry(path)
