"""The command `vlmbench convert`: converts a checkpoint to safetensors weights with a model card."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_vlm.cli.options import REAL_TRACK, Json, TrackName, option
from robustbench_vlm.cli.render.output import Line, answer

_File = Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint: .pt, .pth, .pth.tar, .bin or .safetensors.")]
_Base = Annotated[
    str,
    option("--base", "NAME", "Model before the fine-tuning: a name, a card file, or open_clip:ARCH/TAG."),
]
_Name = Annotated[str, option("--name", "NAME", "Name of the new model. Default: the file name.")]
_Defense = Annotated[str, option("--defense", "NAME", "Defense that the model was trained with.")]
_Out = Annotated[Path | None, option("--out", "DIR", "Folder for the weights and the card.")]


def convert(
    file: _File,
    base: _Base = "",
    track: TrackName = REAL_TRACK,
    name: _Name = "",
    defense: _Defense = "",
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint to a model card.

    Reads the checkpoint formats of published defenses, and writes safetensors weights and a card. No code in the
    checkpoint is run, and nothing is downloaded.
    """
    from robustbench_vlm.models import convert as conversion
    from robustbench_vlm.tracks import TRACKS

    whole_base = TRACKS.load(track).base
    folder = out or Path("converted") / track
    card = conversion.convert(file, base, track, folder, name=name, defense=defense, whole_base=whole_base)
    command = f"vlmbench run --model {card} --track {track}"
    lines = [Line(f"wrote {card}"), Line(f"next: {command}")]
    if not base:
        lines.insert(
            0, Line(f"the architecture, mean and std are those of {whole_base}; give another model with --base")
        )
    answer({"card": str(card)}, lambda width: lines, as_json=as_json)
