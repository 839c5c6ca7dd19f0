"""Forged leaderboard entries: a table of changes to a valid entry, and the message with which the checks refuse each.

`test_forgeries.py` runs every forgery of `FORGERIES` through `vlmbench verify --check` and through the build of the
board. To add a forgery, write a function that changes the files of the valid entry, and add a row to the table.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import torch
from made_up_results import attested, evidence, write_board_entry
from pyarrow import parquet

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.leaderboard.counterexamples import images_file, images_path
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records, write_records
from robustbench_vlm.leaderboard.entry_records import records_bytes as bytes_of_records
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import MINI

VERDICTS = ("", "", "", "", "apgd-ce", "square", "clean", "clean")
"""The values of `broken_by` of the samples of each dataset in a valid entry."""
EPS = "5/255"


@dataclasses.dataclass(frozen=True)
class Forgery:
    """A change to the files of a valid entry, and the message with which the checks refuse the changed entry."""

    name: str
    forge: Callable[[Path], object]
    """A function that changes files. Its argument is the path of the entry, with the records and the images next to it.
    """
    message: str
    """A regular expression that must match the message."""
    is_on_board: bool = False
    """True if the board cannot detect the forgery, because only the earlier version of the entry, or the definitions
    of this package, contradict it. The check of a submission then must refuse it."""


def write_valid_entry(folder: Path, model: str) -> Path:
    """Write an entry that passes all checks, with its records and a counterexample, and return its path.

    The entry has autoattack on all datasets of `mini`, with 8 samples each. Other models have other weights.
    """
    protocol = PROTOCOLS.load(MINI.leaderboard_protocol)
    stages = plain([stage.identity for stage in protocol.adapt_attack(load_attack("autoattack"), "Linf").stages])
    settings = plain(protocol.identity)
    found = []
    for name in MINI.datasets:
        dataset = protocol.adapt_dataset(DATASETS.load(name))
        about = {"classes": list(dataset.classes), "prompts": list(dataset.prompts), "stages": stages}
        note = ("incomplete: 8 of 200 samples",)
        found.append(evidence(model, VERDICTS, name, eps=EPS, warnings=note, settings=settings, **about))
    example = Counterexample("shapes", "0001", "Linf", 0.01, 2, "")
    source, content = images_file("mini", [(example, torch.full((3, 32, 32), 0.5))])
    path = images_path(folder, source)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    examples = (dataclasses.replace(example, source=source),)
    return write_board_entry(found, folder, "reproduced", counterexamples=examples)


def in_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return a forgery that changes the values of the entry file with a function of its JSON object."""

    def forge(path: Path) -> None:
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return forge


def in_text(old: str, new: str) -> Callable[[Path], None]:
    """Return a forgery that replaces the first occurrence of a text in the entry file."""

    def forge(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return forge


def in_records(**changes: Any) -> Callable[[Path], None]:
    """Return a forgery that changes the first broken sample of the first cell, and makes all digests consistent."""
    return in_first(lambda row: row.broken_by == "apgd-ce", **changes)


def in_first(is_chosen: Callable[[SampleResult], bool], **changes: Any) -> Callable[[Path], None]:
    """Return a forgery that changes the first chosen sample of the first cell, and makes all digests consistent."""

    def forge(path: Path) -> None:
        entry = read_entry(path)
        cells = [list(each.results) for each in read_entry_records(entry, path.parent)]
        place = next(n for n, row in enumerate(cells[0]) if is_chosen(row))
        cells[0][place] = dataclasses.replace(cells[0][place], **changes)
        score = dataclasses.replace(entry.cells[0].score, **accuracies(cells[0]))
        first = dataclasses.replace(entry.cells[0], content=fingerprint(cells[0]), score=score)
        content = bytes_of_records(cells)
        records = dataclasses.replace(entry.records, sha256=hashlib.sha256(content).hexdigest())
        write_records(content, path.parent / entry.records.file)
        changed = dataclasses.replace(entry, cells=(first, *entry.cells[1:]), records=records)
        write_entry(changed.after("2026-01-03", "submission", "submitted again"), path)

    return forge


def in_table(change: Callable[[pyarrow.Table], pyarrow.Table], **options: Any) -> Callable[[Path], None]:
    """Return a forgery that changes the table of the records file, and the digest of the file in the entry."""

    def forge(path: Path) -> None:
        entry = read_entry(path)
        file = path.parent / entry.records.file
        table = change(parquet.read_table(file))
        parquet.write_table(table, file, **options)
        write_entry(
            dataclasses.replace(entry, records=dataclasses.replace(entry.records, sha256=sha256_of(file))), path
        )

    return forge


def _set(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets the value at a place such as "history/0/date" in a JSON object."""

    def change(values: dict[str, Any]) -> None:
        *keys, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
        for key in keys:
            values = values[key]  # type: ignore[index]
        values[last] = value  # type: ignore[index]

    return change


def _rename_images(path: Path) -> None:
    [file] = (path.parent / "counterexamples").iterdir()
    file.rename(file.with_name(f"{'0' * 64}.safetensors"))
    in_json(_set("counterexamples/0/source", "0" * 64))(path)


def in_entry(change: Callable[[Entry], Entry]) -> Callable[[Path], None]:
    """Return a forgery that changes the entry with a function."""
    return lambda path: write_entry(change(read_entry(path)), path)


def _with_weights(entry: Entry) -> Entry:
    """Return the entry with other weights, with fingerprints and an event as a submission has them."""
    weights = f"{int(entry.weights, 16) ^ 1:064x}"
    cells = []
    for cell in entry.cells:
        identity = {
            "weights": weights,
            "dataset": cell.dataset,
            **plain(entry.datasets[cell.dataset]),
            "samples": [f"{n:04d}" for n in range(cell.score.n)],
            "attack": {"name": cell.attack, "stages": list(entry.attacks[cell.attack])},
            "threat": plain(cell.threat),
            "protocol": entry.protocol.identity,
        }
        cells.append(dataclasses.replace(cell, fingerprint=fingerprint(identity)))
    return dataclasses.replace(entry, weights=weights, cells=tuple(cells))


def _again(entry: Entry) -> Entry:
    return entry.after("2026-01-03", "submission", "submitted again")


def _rewritten(entry: Entry) -> Entry:
    first = dataclasses.replace(entry.history[0], what="nicer")
    return dataclasses.replace(entry, history=(first, *entry.history[1:]))


def _with_new_chain(entry: Entry) -> Entry:
    """Return the entry with another history whose chain is correct."""
    return attested(dataclasses.replace(entry, history=()).after("2026-01-01", "submission", "nicer"))


FORGERIES = (
    # JSON that is ambiguous, too large or not a number.
    Forgery("number too large", in_text('"facts": {', '"facts": {"x": 1e999'), "larger than any 64-bit float"),
    Forgery("infinity", in_text('"facts": {', '"facts": {"x": Infinity'), "has Infinity"),
    Forgery("two notes", in_text('"note"', '"note": "", "note"'), "repeats the key 'note'"),
    Forgery("half a surrogate pair", in_json(_set("note", "\ud83d")), "lone surrogate"),
    Forgery("deep facts", in_text('"facts": {', '"facts": {"x": ' + "[" * 99 + "]" * 99), "nested deeper"),
    Forgery("long note", in_json(_set("note", "x" * 9_000_000)), "note: .*at most 2000 characters"),
    Forgery("many facts", in_json(_set("history/0/facts", {str(n): "x" * 1999 for n in range(9_000)})), "larger than"),
    # Numbers that do not follow from the records.
    Forgery("higher accuracy", in_json(_set("cells/0/score/robust", 0.875)), "give different accuracies"),
    Forgery("other number of samples", in_json(_set("cells/0/score/n", 9)), "number of rows"),
    Forgery("other radius", in_json(_set("cells/0/threat/eps", "1/255")), "do not match their fingerprint"),
    Forgery("records of another file", in_json(_set("records/sha256", "0" * 64)), "digest of .* is not the one"),
    # Records that contradict themselves.
    Forgery("robust by record", in_records(broken_by=""), "is robust, but its prediction is wrong"),
    Forgery("unknown stage", in_records(broken_by="magic"), "by an unknown stage"),
    Forgery("outside the radius", in_records(distance=0.02), "a distance outside the radius"),
    # Counterexamples.
    Forgery("other images", _rename_images, "does not match the digest in its name"),
    Forgery("counterexample of no sample", in_json(_set("counterexamples/0/sample_id", "9999")), "has no image of"),
    Forgery(
        "counterexamples removed",
        in_json(_set("counterexamples", [])),
        "the counterexample shapes / 0001 of the earlier entry is missing",
        is_on_board=True,
    ),
    # Names and history.
    Forgery("name of another model", in_json(_set("model", "honest")), "move it to mini/honest.json"),
    Forgery("stored status", in_json(_set("status", "verified")), "status: unknown field"),
    Forgery(
        "event in the future", in_entry(lambda entry: entry.after("9999-01-01", "submission", "x")), "in the future"
    ),
    Forgery("rewritten event", in_entry(_rewritten), "does not have the digest of the event before it"),
    Forgery("removed event", in_json(lambda values: values["history"].pop(0)), "does not have the digest of the event"),
    Forgery("rewritten history", in_entry(_with_new_chain), "the history of the earlier entry", is_on_board=True),
    Forgery("weights without event", in_entry(_with_weights), "has the digests of other results"),
    Forgery("attestation without text", in_json(_set("history/1/attestation", None)), "exactly if its kind is"),
    Forgery(
        "better status",
        in_entry(lambda entry: attested(entry, date="2026-01-03", is_full=True)),
        "only an attestation with the signature of a trusted key",
        is_on_board=True,
    ),
    Forgery(
        "counterexamples lost with one bit of the weights",
        in_entry(lambda entry: _again(_with_weights(dataclasses.replace(entry, counterexamples=())))),
        "the counterexample shapes / 0001 of the earlier entry is missing: keep it, also if the weights have changed",
        is_on_board=True,
    ),
)

DOWNGRADES = (
    Forgery("other records", in_records(distance=0.002), "claimed"),
    Forgery("passes", in_records(forward=8), "claimed"),
    Forgery("one bit of the weights", in_entry(lambda entry: _again(_with_weights(entry))), "claimed"),
    Forgery(
        "one pass more in a disputed entry",
        lambda path: (in_entry(lambda e: attested(e, "contradicted"))(path), in_records(forward=8)(path)),
        "disputed",
    ),
)
"""Changes that a submission may make, and the status that the entry then has. The valid entry is "reproduced"."""
