"""The command `vlmbench list`: lists all objects of one kind, such as all attacks."""

from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, KindName, TrackName
from robustbench_vlm.cli.render.output import answer


def list_names(kind: KindName, track: TrackName = DEFAULT_TRACK, as_json: Json = False) -> None:
    """List all objects of one kind, for example all attacks, with a summary of each."""
    from robustbench_vlm.cli import kinds
    from robustbench_vlm.cli.render.documents import entry_lines

    kind = kinds.kind_of(kind)
    listed = kinds.entries(kind, track)
    document = {"kind": kind, "track": track, "entries": [vars(entry) for entry in listed]}
    answer(document, lambda width: entry_lines(listed, width), as_json=as_json)
