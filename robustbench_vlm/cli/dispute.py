"""The command `vlmbench dispute`: submits adversarial images that break samples of a leaderboard entry."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli.options import DataFolder, Json, option
from robustbench_vlm.cli.render.output import Line, answer, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.submit import ModelReference, today

EntryFile = Annotated[Path, typer.Argument(metavar="ENTRY", help="Entry file: leaderboards/<track>/<model>.json.")]
_Images = Annotated[
    Path, option("--images", "FILE", "File of adversarial images, as `vlmbench transfer --save` writes it.")
]


def dispute(
    entry: EntryFile, images: _Images, model: ModelReference = "", data: DataFolder = None, as_json: Json = False
) -> None:
    """Submit adversarial images that break samples of a leaderboard entry.

    The model of the entry classifies each image in one forward pass. If an image within the radius breaks a sample that
    the entry reports as robust, the command lowers the robust accuracy of the entry.
    """
    from robustbench_vlm.leaderboard.dispute import OUTCOMES
    from robustbench_vlm.leaderboard.dispute import dispute as judge
    from robustbench_vlm.leaderboard.entry import read_entry

    note("reading models and images", quiet=as_json)
    with progress("images", quiet=as_json) as on_progress:
        found = judge(
            read_entry(entry), entry.parent, images, date=today(), model=model, data=data, on_progress=on_progress
        )
    if found.found:
        note(f"wrote {entry} and {found.write(entry)}", quiet=as_json)
    fallen = f"the robust accuracy of the entry is now lower; the status of the entry is: {found.entry.status}"
    result = fallen if found.found else "the entry was not changed"
    counted = [f"images that {OUTCOMES[outcome]}: {count}" for outcome, count in found.counts.items() if count]
    document = {"status": found.entry.status, "images": dict(found.counts)}
    answer(document, lambda width: [Line(line) for line in (*counted, result)], as_json=as_json)
