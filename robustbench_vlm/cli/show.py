"""The commands `vlmbench show KIND NAME` for all fields of an object, and `vlmbench show sample` for one sample."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, TrackName, ValueName, example
from robustbench_vlm.cli.render.output import answer
from robustbench_vlm.cli.show_sample import show_sample

EXAMPLES = {
    "model": "agft",
    "dataset": "shapes",
    "attack": "autoattack",
    "defense": "agft",
    "test-time-defense": "ttc",
    "track": "mini",
    "protocol": "trusted",
    "architecture": "mini",
}
"""For each kind of objects, the name of an object. The help text of `vlmbench show KIND` uses this name as example."""


class _Kinds(TyperGroup):
    """The commands `vlmbench show KIND`.

    The kind may be in the plural. An unknown kind raises UserError with the most similar kinds.
    """

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a kind."""
        found = super().get_command(ctx, cmd_name.removesuffix("s"))
        if found is None:
            from robustbench_vlm.cli.kinds import kind_of

            kind_of(cmd_name)
        return found


app = typer.Typer(
    help="Show all fields of one object, such as a model or an attack, or show one sample under attack.",
    cls=_Kinds,
    rich_markup_mode=None,
)


def _show_command(kind: str) -> Callable[..., None]:
    def show_value(name: ValueName, track: TrackName = DEFAULT_TRACK, as_json: Json = False) -> None:
        from robustbench_vlm.cli.kinds import document
        from robustbench_vlm.cli.render.documents import document_lines

        found = document(kind, name, track)
        answer(found, lambda width: document_lines(found, width), as_json=as_json)

    return show_value


for _kind, _name in EXAMPLES.items():
    _help = f"Show all fields of {'an' if _kind[0] in 'aeiou' else 'a'} {_kind}."
    app.command(_kind, help=_help, epilog=example(f"vlmbench show {_kind} {_name}"))(_show_command(_kind))
app.command("sample", epilog=example("vlmbench show sample shapes 0 --model clip --model agft --out sample.png"))(
    show_sample
)
