"""The command `vlmbench submit`: makes a leaderboard entry of a run."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli.options import DataFolder, Json, option
from robustbench_vlm.cli.render import output
from robustbench_vlm.cli.render.output import Line, answer

ModelReference = Annotated[str, option("--model", "NAME", "A card file, if the entry's name does not load the model.")]
_Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a run wrote: runs/<track>/<model>.")]
_Code = Annotated[str, option("--code", "URL", "Address of the defense's code.")]
_Contact = Annotated[str, option("--contact", "TEXT", "A person or address for questions.")]
_Note = Annotated[str, option("--note", "TEXT", "A sentence that the leaderboard shows.")]
_Records = Annotated[str, option("--records", "URL", "Address of the records, if they are not in the repository.")]
_Boards = Annotated[Path, option("--out", "DIR", "The folder of leaderboards, in your clone.")]


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
    """Make a leaderboard entry of a run.

    Writes the entry and its per-sample records, and prints the text of the pull request that submits them.
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
    answer(document, lambda width: lines, as_json=as_json)


def today() -> str:
    """Return today's date in UTC, as entries have it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
