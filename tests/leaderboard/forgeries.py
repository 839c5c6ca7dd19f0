"""Forged leaderboard entries: a table of changes to a valid entry, and the message with which the checks refuse each.

`test_forgeries.py` runs every forgery of `FORGERIES` through `vlmbench verify --check` and through the build of the
board. To add a forgery, write a function that changes the files of the valid entry, and add a row to the table.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import torch
from made_up_results import attested, evidence, samples, write_board_entry
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

VERDICTS = ("", "", "", "", "apgd-ce", "apgd-t", "clean", "clean")
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
        rows = samples(VERDICTS, classes=2)
        found.append(evidence(model, (), name, results=rows, eps=EPS, warnings=note, settings=settings, **about))
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


def _add_random_images(path: Path) -> None:
    (path.parent / "counterexamples" / f"{'a' * 64}.safetensors").write_bytes(b"anything")


def _weights(url: str) -> dict[str, str]:
    return {"file": "weights.pt", "sha256": "", "url": url}


def _with_base(base: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["card"].update(text=None, base=base)

    return change


def _rename_images(path: Path) -> None:
    file = images_path(path.parent, read_entry(path).counterexamples[0].source)
    assert file is not None
    file.with_name(f"{'0' * 64}.safetensors").write_bytes(file.read_bytes())
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


def _with(table: pyarrow.Table, column: str, value: Any) -> pyarrow.Table:
    """Return a table of records with another value in the first row of a column."""
    place = table.schema.get_field_index(column)
    values = [value, *table.column(column).to_pylist()[1:]]
    return table.set_column(place, table.schema.field(column), pyarrow.array(values, table.schema.field(column).type))


def _bomb(table: pyarrow.Table, length: int = 600_000) -> pyarrow.Table:
    """Return a table of records whose column of warnings repeats one long text in the first ten rows."""
    field = table.schema.field("warnings")
    indices = pyarrow.array([0] * 10 + [1] * (len(table) - 10), "int32")
    texts = pyarrow.DictionaryArray.from_arrays(indices, ["w" * length, ""])
    return table.set_column(table.schema.get_field_index("warnings"), field, texts.cast("string"))


def _huge_bomb(table: pyarrow.Table) -> pyarrow.Table:
    return _bomb(table, 3_000_000)


def _with_floats(table: pyarrow.Table) -> pyarrow.Table:
    """Return a table of records with the passes as floats."""
    place = table.schema.get_field_index("forward")
    return table.set_column(place, "forward", table.column("forward").cast("float64"))


def _with_many_rows(path: Path) -> None:
    """Repeat the records of the first cell, and state their number in the entry."""
    in_table(lambda table: pyarrow.concat_tables([table] + [table.slice(0, 8)] * 50))(path)
    in_json(_set("cells/0/score/n", 408))(path)


def _hide_page_size(path: Path) -> None:
    """Write a records file with a huge text, and state a small size in its footer.

    The footer has the unpacked size of the column twice as the integer of `stated`: in the column and in the row group.
    """
    in_table(_huge_bomb, compression="zstd")(path)
    entry = read_entry(path)
    file = path.parent / entry.records.file
    column = next(
        chunk
        for chunk in (parquet.ParquetFile(file).metadata.row_group(0).column(n) for n in range(13))
        if chunk.path_in_schema == "warnings"
    )
    stated, small = _varint(column.total_uncompressed_size), _varint(2**20 + column.total_uncompressed_size % 2**10)
    content = file.read_bytes()
    assert content.count(stated) >= 1 and len(stated) == len(small)
    file.write_bytes(content.replace(stated, small))
    write_entry(dataclasses.replace(entry, records=dataclasses.replace(entry.records, sha256=sha256_of(file))), path)


def _varint(value: int) -> bytes:
    """Return a positive integer as Thrift's compact protocol writes it."""
    digits, value = [], value << 1
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _replace_records(path: Path) -> None:
    entry = read_entry(path)
    file = path.parent / entry.records.file
    file.write_bytes(b"PAR1<html>PAR1")
    write_entry(dataclasses.replace(entry, records=dataclasses.replace(entry.records, sha256=sha256_of(file))), path)


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
    Forgery("class that does not exist", in_records(adversarial_prediction=99), "has a class outside 0 to"),
    Forgery("broken without a perturbation", in_records(distance=0.0), "is broken at the distance 0"),
    Forgery(
        "robust with a perturbation", in_first(lambda row: not row.broken_by, distance=0.01), "has a distance, but"
    ),
    Forgery("margin of a wrong class", in_records(margin=-0.25), "which has the wrong sign"),
    Forgery("margin above 2", in_records(margin=9.9), "has the margin 9.9"),
    Forgery("impossible passes", in_records(forward=2**62), "which no attack needs"),
    Forgery(
        "warning left out of a score",
        in_records(warnings="unstable-output"),
        "lacks the warnings unstable-output:1",
        is_on_board=True,
    ),
    Forgery("no passes", in_records(forward=0), "which no attack needs"),
    Forgery("too many passes", in_records(backward=5000), "backward passes, but the attack", is_on_board=True),
    # Records files that are too large, or have other types.
    Forgery("NaN in a record", in_table(lambda table: _with(table, "margin", math.nan)), "that is NaN or infinite"),
    Forgery("missing value", in_table(lambda table: _with(table, "margin", None)), "margin has missing values"),
    Forgery("long text in a record", in_table(lambda table: _with(table, "warnings", "x" * 5000)), "a text of 5,000"),
    Forgery("many rows", in_table(lambda table: pyarrow.concat_tables([table] * 500)), "number of rows"),
    Forgery("number of rows from the entry", _with_many_rows, "samples of shapes, but the protocol .* at most 200"),
    Forgery("one long text for many rows", in_table(_bomb, compression="zstd"), "a text of 600,000 bytes"),
    Forgery("one huge text for many rows", in_table(_huge_bomb, compression="zstd"), "unpack to more than"),
    Forgery(
        "encoding that grows",
        in_table(_bomb, use_dictionary=False, column_encoding={"warnings": "DELTA_BYTE_ARRAY"}),
        "has an encoding or a size that is not accepted",
    ),
    Forgery("hidden page size", _hide_page_size, "unpack to more than"),
    Forgery("other types", in_table(_with_floats), "the columns or the number of rows"),
    Forgery("no Parquet", _replace_records, "is not a valid records file"),
    # Counterexamples.
    Forgery("other images", _rename_images, "does not match the digest in its name"),
    Forgery("counterexample of no sample", in_json(_set("counterexamples/0/sample_id", "9999")), "has no image of"),
    Forgery(
        "counterexamples removed",
        in_json(_set("counterexamples", [])),
        "the counterexample shapes / 0001 of the earlier entry is missing",
        is_on_board=True,
    ),
    Forgery("random file of images", _add_random_images, "no entry names .* as the images", is_on_board=True),
    # Cards.
    Forgery("path on the hub", in_json(_set("card/image", _weights("hf:../../a/b.pt"))), "the url must be an https"),
    Forgery("file address", in_json(_set("card/image", _weights("file:///etc/passwd"))), "the url must be an https"),
    Forgery(
        "absolute path of weights",
        in_json(_set("card/text", {**_weights(""), "file": "/etc/passwd"})),
        "must state the sha256 of",
    ),
    Forgery(
        "path of weights outside the folder",
        in_json(_set("card/image", {**_weights("https://example.org/a.pt"), "file": "../../a.pt"})),
        "must be in the folder of the card",
    ),
    Forgery(
        "weights in the network of a cloud machine",
        in_json(_set("card/image", _weights("https://169.254.169.254/a.pt"))),
        "or a host in a private",
    ),
    Forgery(
        "weights in a private network",
        in_json(_set("card/image", _weights("https://192.168.0.1/a.pt"))),
        "or a host in a private",
    ),
    Forgery("weights without TLS", in_json(_set("card/image", _weights("http://example.org/a.pt"))), "https"),
    Forgery("base outside the folder", in_json(_with_base("../../other.json")), "a card in the folder of this card"),
    Forgery("absolute base", in_json(_with_base("/tmp/other.json")), "a card in the folder of this card"),
    Forgery("number of the card", in_text('"card": {', '"card": {"std": [1e999, 1, 1], '), "larger than any 64-bit"),
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
