"""The commands `submit`, `verify` and `dispute`: results on their way to the leaderboard, and others who check them."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vlm.cli.options import DataFolder, Device, Json, Workers, option
from robustbench_vlm.cli.render import screen
from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from robustbench_vlm.leaderboard.verify import Verification

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a run wrote: runs/<track>/<model>.")]
_Entry = Annotated[Path, typer.Argument(metavar="ENTRY", help="leaderboards/<track>/<model>.json.")]
_Reference = Annotated[str, option("--model", "NAME", "A card file, where the entry's name does not load the model.")]
_Code = Annotated[str, option("--code", "URL", "Where the defense's code is.")]
_Contact = Annotated[str, option("--contact", "TEXT", "Whom to ask.")]
_Note = Annotated[str, option("--note", "TEXT", "A sentence that the leaderboard shows.")]
_Records = Annotated[str, option("--records", "URL", "Where the records will be, if not in the repository.")]
_Boards = Annotated[Path, option("--out", "DIR", "The folder of leaderboards, in your clone.")]
_Samples = Annotated[
    int, option("--samples", "N", "Verdicts that are computed again, and as many of other attacks and radii.")
]
_Full = Annotated[bool, typer.Option("--full", help="Compute every verdict of the entry again.")]
_Check = Annotated[bool, typer.Option("--check", help="Look at digests, ids and numbers only; compute nothing.")]
_SINCE = "With --check: the entry as it was before; history and counterexamples must go on from it."
_Since = Annotated[Path | None, option("--since", "FILE", _SINCE)]
_Seed = Annotated[int | None, option("--seed", "N", "Draw the samples of an earlier verification.")]
_Images = Annotated[Path, option("--images", "FILE", "Adversarial images, as `vlmbench transfer --save` writes them.")]

_CONFIDENCE = " (95 % confidence, exact binomial bound)"
_PARTS = {"ranked": "what its rank rests on", "others": "other attacks and radii"}
SHOWN = 10
"""Disagreements that are listed."""


def submit(
    run: _Run,
    model: _Reference = "",
    code: _Code = "",
    contact: _Contact = "",
    note: _Note = "",
    records: _Records = "",
    data: DataFolder = None,
    out: _Boards = Path("leaderboards"),
    as_json: Json = False,
) -> None:
    """Make a leaderboard entry of a run.

    Writes the entry and its per-sample records, and prints the text of the pull request that hands them in.
    """
    from robustbench_vlm.leaderboard.submit import submission

    links = {key: value for key, value in (("code", code), ("contact", contact)) if value}
    made = submission(run, date=today(), model=model, links=links, note=note, records=records, board=out, data=data)
    path = made.write(out)
    document = {"entry": str(path), "remarks": list(made.remarks), "pull_request": made.pull_request}
    lines = [screen.Line(line) for line in made.pull_request.splitlines()]
    screen.note(f"wrote {path} and {path.parent / made.entry.records.file}", quiet=as_json)
    screen.answer(document, lambda width: lines, as_json=as_json)


def verify(
    entry: _Entry,
    samples: _Samples = 200,
    full: _Full = False,
    check: _Check = False,
    since: _Since = None,
    seed: _Seed = None,
    model: _Reference = "",
    data: DataFolder = None,
    workers: Workers = 0,
    device: Device = "",
    as_json: Json = False,
) -> int:
    """Check an entry and compute a random part of its verdicts again.

    Writes the entry's new status and what speaks for it. Exit code 1: the entry does not hold.
    """
    from robustbench_vlm.engine.cost import Resources
    from robustbench_vlm.leaderboard.entry import write_entry
    from robustbench_vlm.leaderboard.validate import read_placed
    from robustbench_vlm.leaderboard.verify import verify as examine

    if samples < 1:
        raise UserError(f"--samples {samples} is no number of verdicts: give 1 or more, or --full")
    if since is not None and not check:
        raise UserError("--since goes with --check: it looks at what a submission changes")
    if check:
        return _check(entry, since, as_json=as_json)
    stored = read_placed(entry)
    screen.note("reading models and images", quiet=as_json)
    with screen.progress("verdicts", quiet=as_json) as on_progress:
        found = examine(
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
    screen.answer(_document(found), lambda width: _lines(found, full=full), as_json=as_json)
    return 0 if found.is_confirmed else 1


def dispute(
    entry: _Entry, images: _Images, model: _Reference = "", data: DataFolder = None, as_json: Json = False
) -> None:
    """Hand in adversarial images against an entry.

    Every image costs one forward pass. Samples that it breaks inside the radius lower the entry's number.
    """
    from robustbench_vlm.leaderboard.dispute import OUTCOMES
    from robustbench_vlm.leaderboard.dispute import dispute as judge
    from robustbench_vlm.leaderboard.entry import read_entry

    screen.note("reading models and images", quiet=as_json)
    with screen.progress("images", quiet=as_json) as on_progress:
        found = judge(
            read_entry(entry), entry.parent, images, date=today(), model=model, data=data, on_progress=on_progress
        )
    if found.found:
        screen.note(f"wrote {entry} and {found.write(entry)}", quiet=as_json)
    fallen = f"the entry's number falls, and its status is: {found.entry.status}"
    said = fallen if found.found else "the entry stands as it was"
    counted = [f"{OUTCOMES[outcome]}: {count}" for outcome, count in found.counts.items() if count]
    document = {"status": found.entry.status, "images": dict(found.counts)}
    screen.answer(document, lambda width: [screen.Line(line) for line in (*counted, said)], as_json=as_json)


def today() -> str:
    """Return today's date, UTC, as entries have it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _check(path: Path, since: Path | None, *, as_json: bool) -> int:
    from robustbench_vlm.engine.evidence import Unsound
    from robustbench_vlm.leaderboard.entry import read_entry
    from robustbench_vlm.leaderboard.validate import check_continuation, check_definitions, check_entry, read_placed

    try:
        entry = read_placed(path)
        evidence = check_entry(entry, path.parent)
        check_definitions(entry, evidence)
        if since is not None:
            check_continuation(entry, evidence, read_entry(since) if since.is_file() else None, path.parent)
        count = sum(each.score.n for each in evidence)
        line = screen.Line(f"sound: digests, ids and numbers of {count} records agree; nothing was computed again")
        problems = []
    except Unsound as error:
        problems = [str(error)]
        line = _problem(problems[0])
    screen.answer({"sound": not problems, "problems": problems}, lambda width: [line], as_json=as_json)
    return 1 if problems else 0


def _document(found: "Verification") -> dict[str, Any]:
    return {
        "status": found.entry.status,
        "confirmed": found.is_confirmed,
        "problems": list(found.problems),
        "parts": [vars(part) for part in found.parts],
        "seed": found.seed,
        "struck": [vars(each) for each in found.struck],
        "disagreements": [vars(each) for each in found.disagreements],
    }


def _lines(found: "Verification", *, full: bool) -> list[screen.Line]:
    lines = [_problem(problem) for problem in found.problems]
    for part in found.parts:
        lines += [
            screen.Line(f"{_PARTS[part.name]}: {part.verdicts} verdicts computed again"),
            screen.Line(f"  {part.wrong} came out otherwise, {part.too_high} of them robust on record and broken here"),
            screen.Line(f"  at most {100 * part.bound:.1f} % of these are wrong{'' if full else _CONFIDENCE}"),
        ]
    if found.parts and not full:
        lines.append(screen.Line(f"drawn by the seed {found.seed}"))
    for each in found.disagreements[:SHOWN]:
        stored, here = (name or "robust" for name in (each.stored, each.found))
        about = f"{each.attack} / {each.dataset} / {each.eps} / {each.sample_id}: {stored} on record, {here} here"
        lines.append(screen.Line(about))
    if more := len(found.disagreements) - SHOWN:
        lines += [screen.Line(f"and {more} more")] if more > 0 else []
    if found.struck:
        lines.append(screen.Line(f"counterexamples that break nothing here, struck out: {len(found.struck)}", "red"))
    return [*lines, screen.Line(f"status: {found.entry.status}", "" if found.is_confirmed else "red")]


def _problem(text: str) -> screen.Line:
    return screen.Line(f"does not hold: {text}", "red")
