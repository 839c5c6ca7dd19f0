"""The command `vlmbench verify`: checks a leaderboard entry, and attacks randomly drawn samples of it again."""

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
    from robustbench_vlm.leaderboard.verify import Verification

_Samples = Annotated[
    int,
    option(
        "--samples",
        "N",
        "Verdicts to compute again: N of the standard attack, and N of all other attacks and radii.",
    ),
]
_Full = Annotated[bool, typer.Option("--full", help="Attack every sample of the entry again.")]
_Check = Annotated[
    bool, typer.Option("--check", help="Check only digests, ids and accuracies, without running an attack.")
]
_SINCE = "Only with --check: earlier version of the entry. The new version must keep its history and counterexamples."
_Since = Annotated[Path | None, option("--since", "FILE", _SINCE)]
_Seed = Annotated[
    int | None,
    option("--seed", "N", "Seed of an earlier verification, to draw the same samples again. Default: a random seed."),
]

_CONFIDENCE = " (95 % confidence, exact binomial bound)"
_PARTS = {"ranked": "the verdicts that the rank depends on", "others": "other attacks and radii"}
SHOWN = 10
"""Largest number of samples in the list of differing verdicts."""


def verify(
    entry: EntryFile,
    samples: _Samples = 200,
    full: _Full = False,
    check: _Check = False,
    since: _Since = None,
    seed: _Seed = None,
    model: ModelReference = "",
    data: DataFolder = None,
    workers: Workers = 0,
    device: Device = "",
    as_json: Json = False,
) -> int:
    """Check a leaderboard entry, and attack randomly drawn samples of it again.

    A verdict says whether a sample is robust or broken. The new verdicts are compared with those in the records. Writes
    the new status and the findings to the entry. Exit code 1: a check fails.
    """
    from robustbench_vlm.engine.resources import Resources
    from robustbench_vlm.leaderboard.entry import write_entry
    from robustbench_vlm.leaderboard.validate import read_entry_in_place
    from robustbench_vlm.leaderboard.verify import verify as verify_entry

    if samples < 1:
        raise UserError(f"--samples must be a positive integer, got {samples}: give --full to compute every verdict")
    if since is not None and not check:
        raise UserError("--since needs --check: it compares an entry with the version before a submission; add --check")
    if check:
        return _check(entry, since, as_json=as_json)
    stored = read_entry_in_place(entry)
    note("reading models and images", quiet=as_json)
    with progress("verdicts", quiet=as_json) as on_progress:
        found = verify_entry(
            stored,
            entry.parent,
            date=today(),
            samples=None if full else samples,
            seed=seed,
            model=model,
            data=data,
            resources=Resources(device, workers),
            on_progress=on_progress,
        )
    write_entry(found.entry, entry)
    answer(_document(found), lambda width: _lines(found, full=full), as_json=as_json)
    return 0 if found.is_confirmed else 1


def _check(path: Path, since: Path | None, *, as_json: bool) -> int:
    from robustbench_vlm.engine.cell_records import Unsound
    from robustbench_vlm.leaderboard.entry import read_entry
    from robustbench_vlm.leaderboard.validate import (
        check_continuation,
        check_definitions,
        check_entry,
        read_entry_in_place,
    )

    try:
        entry = read_entry_in_place(path)
        evidence = check_entry(entry, path.parent)
        check_definitions(entry, evidence)
        if since is not None:
            check_continuation(entry, evidence, read_entry(since) if since.is_file() else None, path.parent)
        count = sum(each.score.n for each in evidence)
        line = Line(
            f"the entry is valid: the digests, ids and numbers of {count} records agree; no verdict was recomputed"
        )
        problems = []
    except Unsound as error:
        problems = [str(error)]
        line = _problem(problems[0])
    answer({"valid": not problems, "problems": problems}, lambda width: [line], as_json=as_json)
    return 1 if problems else 0


def _document(found: "Verification") -> dict[str, Any]:
    return {
        "status": found.entry.status,
        "confirmed": found.is_confirmed,
        "problems": list(found.problems),
        "parts": [vars(part) for part in found.parts],
        "seed": found.seed,
        "removed_counterexamples": [vars(each) for each in found.removed_counterexamples],
        "disagreements": [vars(each) for each in found.disagreements],
    }


def _lines(found: "Verification", *, full: bool) -> list[Line]:
    lines = [_problem(problem) for problem in found.problems]
    for part in found.parts:
        lines += [
            Line(f"{_PARTS[part.name]}: {part.verdicts} verdicts computed again"),
            Line(f"  {part.wrong} verdicts differ; {part.too_high} of them are robust in the records and broken here"),
            Line(f"  at most {percent(part.bound)} % of all its verdicts are wrong{'' if full else _CONFIDENCE}"),
        ]
    if found.parts and not full:
        lines.append(Line(f"samples drawn with the seed {found.seed}"))
    for each in found.disagreements[:SHOWN]:
        stored, here = (name or "robust" for name in (each.stored, each.found))
        about = f"{each.attack} / {each.dataset} / {each.eps} / {each.sample_id}: {stored} in the records, {here} here"
        lines.append(Line(about))
    if more := len(found.disagreements) - SHOWN:
        lines += [Line(f"and {more} more")] if more > 0 else []
    if found.removed_counterexamples:
        lines.append(
            Line(
                "counterexamples that break no sample on this machine were removed:"
                f" {len(found.removed_counterexamples)}",
                "red",
            )
        )
    return [*lines, Line(f"status: {found.entry.status}", "" if found.is_confirmed else "red")]


def _problem(text: str) -> Line:
    return Line(f"contradicted: {text}", "red")
