"""The command `vlmbench list`: lists all objects of one kind, such as all attacks."""

from typing import Annotated

from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, KindName, option
from robustbench_vlm.cli.render.output import answer

_Track = Annotated[
    str,
    option(
        "--track",
        "NAME",
        f"List only what belongs to this track. Default: everything, and the models of {DEFAULT_TRACK}.",
    ),
]


def list_names(kind: KindName, track: _Track = "", as_json: Json = False) -> None:
    """List all objects of one kind, for example all attacks, with a summary of each."""
    from robustbench_vlm.cli import kinds
    from robustbench_vlm.cli.render.documents import entry_lines

    kind = kinds.kind_of(kind)
    listed = kinds.entries(kind, track)
    document = {"kind": kind, "track": track, "entries": [vars(entry) for entry in listed]}
    answer(document, lambda width: entry_lines(listed, width), as_json=as_json)
