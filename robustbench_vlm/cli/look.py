"""The commands that look at what there is: `list`, `show` and `diff`."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from robustbench_vlm.cli.options import TRACK, Json, KindName, TrackName, ValueName, example
from robustbench_vlm.cli.render import screen
from robustbench_vlm.cli.show_sample import show_sample

SHOWN = {
    "model": "agft",
    "dataset": "shapes",
    "attack": "autoattack",
    "defense": "agft",
    "procedure": "ttc",
    "track": "mini",
    "protocol": "trusted",
    "architecture": "mini",
}
"""Kind -> a name of it."""


def list_names(kind: KindName, track: TrackName = TRACK, as_json: Json = False) -> None:
    """List what there is of a kind."""
    from robustbench_vlm.cli import catalog

    kind = catalog.kind_of(kind)
    listed = catalog.entries(kind, track)
    found = {"kind": kind, "track": track, "entries": [vars(entry) for entry in listed]}
    screen.answer(found, lambda width: catalog.entry_lines(listed, width), as_json=as_json)


class _Kinds(TyperGroup):
    """The commands `show KIND`, whose kind may be plural; an unknown one is told as it is elsewhere."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a kind."""
        found = super().get_command(ctx, cmd_name.removesuffix("s"))
        if found is None:
            from robustbench_vlm.cli import catalog

            catalog.kind_of(cmd_name)
        return found


show = typer.Typer(help="Show all that is known of one value, or one sample.", cls=_Kinds, rich_markup_mode=None)


def _show_command(kind: str) -> Callable[..., None]:
    def show_value(name: ValueName, track: TrackName = TRACK, as_json: Json = False) -> None:
        from robustbench_vlm.cli import catalog

        found = catalog.document(kind, name, track)
        screen.answer(found, lambda width: catalog.document_lines(found, width), as_json=as_json)

    return show_value


for _kind, _name in SHOWN.items():
    _help = f"Show all that is known of {'an' if _kind[0] in 'aeiou' else 'a'} {_kind}."
    show.command(_kind, help=_help, epilog=example(f"vlmbench show {_kind} {_name}"))(_show_command(_kind))
show.command("sample", epilog=example("vlmbench show sample shapes 0 --model clip --model agft --out sample.png"))(
    show_sample
)


def diff(
    kind: Annotated[
        str,
        typer.Argument(metavar="protocol", help="Only protocols are compared.", autocompletion=lambda: ["protocol"]),
    ],
    first: ValueName,
    second: ValueName,
    as_json: Json = False,
) -> None:
    """Say what differs between two protocols."""
    from robustbench_vlm.cli import catalog
    from robustbench_vlm.cli.render import protocols

    catalog.check_is_protocol(kind)
    found = protocols.differences(first, second)
    document = {"first": first, "second": second, "differences": [vars(each) for each in found]}
    screen.answer(document, lambda width: protocols.difference_lines(first, second, found, width), as_json=as_json)
