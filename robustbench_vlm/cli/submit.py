"""The command `vlmbench submit`: makes a leaderboard entry of a run."""

import datetime
import shlex
from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli.options import DataFolder, Json, option
from robustbench_vlm.cli.render import output
from robustbench_vlm.cli.render.output import Line, answer

ModelReference = Annotated[
    str, option("--model", "NAME", "Card file of the model. Default: the model is found by its name.")
]
_Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: runs/<track>/<model>.")]
_Code = Annotated[str, option("--code", "URL", "URL of the code of the defense.")]
_Contact = Annotated[
    str, option("--contact", "TEXT", "Name or address of a person who answers questions about the entry.")
]
_Note = Annotated[str, option("--note", "TEXT", "Sentence about the model that the leaderboard shows.")]
_Records = Annotated[str, option("--records", "URL", "URL of the records, if they are not in the repository.")]
_Boards = Annotated[Path, option("--out", "DIR", "Folder of leaderboards in your clone of the repository.")]


def submit(
    run: _Run,
    model: ModelReference = "",
    code: _Code = "",
    contact: _Contact = "",
    note: _Note = "",
    records: _Records = "",
    data: DataFolder = None,
    out: _Boards = Path("leaderboards"),
    as_json: Json = False,
) -> None:
    """Make a leaderboard entry from a run.

    Writes the entry and its per-sample records. Prints the text of a pull request that adds them to the leaderboard.
    """
    from robustbench_vlm.leaderboard.submit import make_submission

    links = {key: value for key, value in (("code", code), ("contact", contact)) if value}
    made = make_submission(
        run, date=today(), model=model, links=links, note=note, records=records, board=out, data=data
    )
    path = made.write(out)
    document = {"entry": str(path), "remarks": list(made.remarks), "pull_request": made.pull_request}
    lines = [Line(line) for line in made.pull_request.splitlines()]
    output.note(f"wrote {path} and {path.parent / made.entry.records.file}", quiet=as_json)
    output.note(f"to check them, run `vlmbench verify {shlex.quote(str(path))} --check`", quiet=as_json)
    answer(document, lambda width: lines, as_json=as_json)


def today() -> str:
    """Return today's date in UTC, such as "2026-01-31"."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
