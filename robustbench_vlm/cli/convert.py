"""The command `convert`: somebody's checkpoint becomes a model that all other commands take."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli.options import Json, TrackName, option
from robustbench_vlm.cli.render import screen

_TRACK = "zeroshot15"
"""The track that checkpoints of others belong to."""

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A .pt, .pth, .pth.tar, .bin or .safetensors.")]
_Base = Annotated[str, option("--base", "NAME", "What it was fine-tuned from: a name, a card file, or open_clip's.")]
_Name = Annotated[str, option("--name", "NAME", "Of the new model; the file's if none.")]
_Defense = Annotated[str, option("--defense", "NAME", "The defense that it was trained by.")]
_Out = Annotated[Path | None, option("--out", "DIR", "Where the weights and the card go.")]


def convert(
    file: _File,
    base: _Base,
    track: TrackName = _TRACK,
    name: _Name = "",
    defense: _Defense = "",
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Take somebody's checkpoint.

    Whatever layout its file has, safetensors with a card come out. Nothing in the file is run, and nothing is fetched.
    """
    from robustbench_vlm.models import convert as conversion

    card = conversion.convert(file, base, track, out or Path("converted") / track, name=name, defense=defense)
    command = f"vlmbench run --model {card} --track {track}"
    lines = [screen.Line(f"wrote {card}"), screen.Line(f"next: {command}")]
    screen.answer({"card": str(card)}, lambda width: lines, as_json=as_json)
