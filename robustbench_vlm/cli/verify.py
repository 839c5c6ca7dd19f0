"""The command `vlmbench verify`: checks a leaderboard entry, and attacks samples of it again."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vlm.cli.dispute import EntryFile
from robustbench_vlm.cli.options import DataFolder, Device, Json, Workers, option
from robustbench_vlm.cli.render.output import Line, answer, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.submit import ModelReference, today
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import percent

if TYPE_CHECKING:
    from robustbench_vlm.leaderboard.entry import Entry
    from robustbench_vlm.leaderboard.history import AttestedPart
    from robustbench_vlm.leaderboard.verify import Verification

_SAMPLES = (
    "Robust samples to attack with all stages, for the attack that the rank depends on. For each other attack and"
    " radius, N robust and N broken samples are attacked with fewer stages."
)
_Samples = Annotated[int, option("--samples", "N", _SAMPLES)]
_Full = Annotated[bool, typer.Option("--full", help="Attack every sample of the entry again.")]
_Check = Annotated[
    bool, typer.Option("--check", help="Check only digests, history, ids and accuracies, without running an attack.")
]
_SINCE = "Only with --check: earlier version of the entry. The new version must keep its history and counterexamples."
_Since = Annotated[Path | None, option("--since", "FILE", _SINCE)]
_Seed = Annotated[
    int | None,
    option("--seed", "N", "Seed of an earlier verification, to draw the same samples again. Default: a random seed."),
]
_ATTEMPT = "Number of this verification among those of one submission. Attempt K draws K times as many samples."
_Attempt = Annotated[int, option("--attempt", "K", _ATTEMPT)]
_Dataset = Annotated[
    list[str] | None, option("--dataset", "NAME", "Verify only this dataset. Repeat the option for more datasets.")
]
_Attestation = Annotated[Path | None, option("--attestation", "FILE", "Also write the result as an in-toto statement.")]
_Sign = Annotated[Path | None, option("--sign", "KEY", "SSH key that signs the result.")]
_Add = Annotated[
    Path | None, option("--add", "FILE", "Add the attestation of another machine to the history. Runs no attack.")
]
SHOWN = 10
"""Largest number of samples in the list of differing verdicts."""


def verify(
    entry: EntryFile,
    samples: _Samples = 40,
    full: _Full = False,
    check: _Check = False,
    since: _Since = None,
    seed: _Seed = None,
    attempt: _Attempt = 1,
    dataset: _Dataset = None,
    attestation: _Attestation = None,
    sign: _Sign = None,
    add: _Add = None,
    model: ModelReference = "",
    data: DataFolder = None,
    workers: Workers = 0,
    device: Device = "",
    as_json: Json = False,
) -> int:
    """Check a leaderboard entry, and attack samples of it again.

    A verdict says whether a sample is robust or broken. The new verdicts are compared with those in the records. Adds
    the findings to the history of the entry. The status of the entry follows from its history. Exit code 1: a check
    fails.
    """
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.leaderboard.attestation import write_statement
    from robustbench_vlm.leaderboard.entry import write_entry
    from robustbench_vlm.leaderboard.validate import read_entry_in_place
    from robustbench_vlm.leaderboard.verify import Draw
    from robustbench_vlm.leaderboard.verify import verify as verify_entry

    for name, value in (("--samples", samples), ("--attempt", attempt)):
        if value < 1:
            more = ": give --full to compute every verdict" if name == "--samples" else ": give 1 for the first attempt"
            raise UserError(f"{name} must be a positive integer, got {value}{more}")
    if since is not None and not check:
        raise UserError("--since needs --check: it compares an entry with the version before a submission; add --check")
    if check:
        return _check(entry, since, as_json=as_json)
    if add is not None:
        return _add(entry, add, as_json=as_json)
    stored = read_entry_in_place(entry)
    note("reading models and images", quiet=as_json)
    with progress("samples", quiet=as_json) as on_progress:
        found = verify_entry(
            stored,
            entry.parent,
            date=today(),
            draw=Draw(None if full else samples, seed, attempt, tuple(dataset or ())),
            model=model,
            data=data,
            resources=Resources(device, workers),
            on_progress=on_progress,
        )
    after = _signed(found.entry, sign)
    paths = found.write_images(entry.parent)
    write_entry(after, entry)
    if attestation is not None:
        write_statement(after.history[-1], attestation)
    answer(_document(found, paths), lambda width: _lines(found, paths), as_json=as_json)
    return 0 if found.is_confirmed else 1


def _signed(entry: "Entry", key: Path | None) -> "Entry":
    """Return the entry with a signature of its last event, if a key is given."""
    from robustbench_vlm.leaderboard.attestation import statement_bytes
    from robustbench_vlm.leaderboard.signature import sign

    if key is None:
        return entry
    last = entry.history[-1]
    signed = dataclasses.replace(last, signature=sign(statement_bytes(last), key))
    return dataclasses.replace(entry, history=(*entry.history[:-1], signed))


def _add(path: Path, file: Path, *, as_json: bool) -> int:
    """Add the attestation in a file to the history of an entry."""
    from robustbench_vlm.leaderboard.attestation import read_statement
    from robustbench_vlm.leaderboard.entry import write_entry
    from robustbench_vlm.leaderboard.validate import check_history, read_entry_in_place

    entry = read_entry_in_place(path)
    subject, attestation, signature = read_statement(file)
    if subject != entry.subject:
        differ = [name for name, value in vars(subject).items() if value != getattr(entry.subject, name)]
        raise UserError(
            f"{file} attests other {' and '.join(differ)} than those of {path}: verify the current entry again"
        )
    if any(event.attestation == attestation for event in entry.history):
        raise UserError(f"the history of {path} already has the attestation {file}: give another one")
    what = "An attestation from another machine"
    after = entry.after(today(), "attestation", what, attestation=attestation, signature=signature)
    check_history(after)
    write_entry(after, path)
    line = Line(f"added the attestation to {path}; status: {after.status}")
    answer({"status": after.status}, lambda width: [line], as_json=as_json)
    return 0


def _check(path: Path, since: Path | None, *, as_json: bool) -> int:
    from robustbench_vlm.engine.cell_records import Unsound
    from robustbench_vlm.leaderboard.definitions import check_definitions
    from robustbench_vlm.leaderboard.entry import read_entry
    from robustbench_vlm.leaderboard.validate import (
        check_continuation,
        check_entry,
        check_neighbours,
        read_entry_in_place,
    )

    try:
        entry = read_entry_in_place(path)
        evidence = check_entry(entry, path.parent)
        check_definitions(entry, evidence)
        check_neighbours(entry, path.parent)
        if since is not None:
            earlier = read_entry(since) if since.is_file() else None
            check_continuation(entry, earlier, path.parent, evidence=evidence)
        count = sum(each.score.n for each in evidence)
        lines = [
            Line(
                f"the entry is valid: the digests, history, ids and numbers of {count} records agree; no verdict was"
                " recomputed"
            ),
            Line(f"status: {entry.status}"),
        ]
        document = {"valid": True, "problems": [], "status": entry.status}
    except Unsound as error:
        lines = [_problem(str(error))]
        document = {"valid": False, "problems": [str(error)], "status": ""}
    answer(document, lambda width: lines, as_json=as_json)
    return 0 if document["valid"] else 1


def _document(found: "Verification", paths: list[Path]) -> dict[str, Any]:
    from robustbench_vlm.core.fingerprint import plain

    return {
        "status": found.entry.status,
        "confirmed": found.is_confirmed,
        "attestation": plain(found.attestation),
        "counterexamples": [str(path) for path in paths],
        "removed_counterexamples": [vars(each) for each in found.removed_counterexamples],
    }


def _lines(found: "Verification", paths: list[Path]) -> list[Line]:
    attestation = found.attestation
    lines = [_problem(problem) for problem in attestation.problems]
    for part in attestation.parts:
        lines += _part_lines(part)
    if attestation.parts and not attestation.is_full:
        lines.append(Line(f"samples drawn with the seed {attestation.seed}"))
    for each in attestation.disagreements[:SHOWN]:
        stored, here = (name or "robust" for name in (each.stored, each.found))
        about = f"{each.attack} / {each.dataset} / {each.eps} / {each.sample_id}: {stored} in the records, {here} here"
        lines.append(Line(about))
    if (more := len(attestation.disagreements) - SHOWN) > 0:
        lines.append(Line(f"and {more} more"))
    lines += [Line(f"new counterexamples lower the number; their images are in {path}") for path in paths]
    if count := len(found.removed_counterexamples):
        lines.append(Line(f"counterexamples that break no sample on this machine were removed: {count}", "red"))
    return [*lines, Line(f"status: {found.entry.status}", "" if found.is_confirmed else "red")]


def _part_lines(part: "AttestedPart") -> list[Line]:
    lines = [
        Line(f"{part.attack} at {part.eps}: {part.samples} samples, of which {part.robust} are robust in the records"),
        Line(
            f"  attacked again: {part.first} robust samples, {part.nearest} of them with the second stage,"
            f" {part.drawn} with all stages, and {part.broken} broken samples"
        ),
        Line(f"  {part.wrong} verdicts differ; {part.too_high} of them are robust in the records and broken here"),
    ]
    if part.samples:
        high = part.robust / part.samples
        low = percent(max(high - part.bound, 0.0))
        lines.append(
            Line(f"  the whole attack leaves {low} to {percent(high)} % of these samples robust (95 % confidence)")
        )
    return lines


def _problem(text: str) -> Line:
    return Line(f"contradicted: {text}", "red")
