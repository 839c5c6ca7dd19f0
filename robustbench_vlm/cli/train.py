"""The command `vlmbench train`: trains a defense. `sweep` and `pretrain` share its options."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.cli.options import DEFAULT_TRACK, Device, Json, TrackName, option, with_options_of
from robustbench_vlm.cli.render.output import Line, answer, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress

if TYPE_CHECKING:
    from robustbench_vlm.training.finetune import Runtime
    from robustbench_vlm.training.request import TrainingRequest

ModelFolder = Annotated[Path | None, option("--out", "DIR", "Folder that the weights and the card are written to.")]
_DefenseName = Annotated[
    str,
    typer.Argument(
        metavar="DEFENSE", help="Defense: see `vlmbench list defenses`.", autocompletion=completion.BY_KIND["defense"]
    ),
]
_Eps = Annotated[str, option("--eps", "EPS", "Training radius, such as 2/255. Default: the track's training radius.")]
_Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs", metavar="N", min=1, help="Number of epochs. Default: the number in the defense's schedule."
    ),
]
_NUM_IMAGES = "Number of training images. Default: the number that the track sets, or all images in --images."
_NumImages = Annotated[int | None, typer.Option("--num-images", metavar="N", min=1, help=_NUM_IMAGES)]
_Seed = Annotated[int, option("--seed", "N", "Seed of all random numbers.")]
_SETTING = "New value of lr, batch_size, warmup, weight_decay, epochs, steps, inner_steps or a setting of the defense."
_Settings = Annotated[list[str] | None, option("--set", "NAME=NUMBER", _SETTING)]
_IMAGES = "Folder of training images with one subfolder per class, like ImageNet."
_Images = Annotated[Path | None, option("--images", "DIR", _IMAGES)]
_Base = Annotated[
    str, option("--base", "NAME", "Model to start from, a name or a card file. Default: the track's base model.")
]
_Precision = Annotated[
    str,
    option(
        "--precision",
        "NAME",
        "Precision of the training pass, float32 or bfloat16; the inner attack and the loss are always float32.",
    ),
]
_SaveEvery = Annotated[
    int, typer.Option("--save-every", metavar="N", min=1, help="Number of steps between checkpoints.")
]
_RESUME = "Resume from a checkpoint, or start from the beginning. Default: resume if a checkpoint exists."
_Resume = Annotated[bool | None, typer.Option("--resume/--no-resume", help=_RESUME)]


def training_request(
    defense: _DefenseName,
    track: TrackName = DEFAULT_TRACK,
    images: _Images = None,
    eps: _Eps = "",
    epochs: _Epochs = None,
    num_images: _NumImages = None,
    seed: _Seed = 0,
    settings: _Settings = None,
    base: _Base = "",
    precision: _Precision = "float32",
) -> "TrainingRequest":
    """Return the training request for the given options. Raise UserError if a value is not allowed."""
    from robustbench_vlm.core.threat import parse_eps
    from robustbench_vlm.training.request import TrainingRequest

    radius = parse_eps(eps) if eps else None
    return TrainingRequest(
        defense, track, radius, epochs, num_images, seed, numbers(settings or []), images, base, precision
    )


def _train(
    request: "TrainingRequest",
    device: Device = "",
    save_every: _SaveEvery = 200,
    resume: _Resume = None,
    out: ModelFolder = None,
    as_json: Json = False,
) -> None:
    """Train a defense.

    Fine-tunes the track's base model. If the command is stopped, run it again to resume. To use several GPUs, run
    `accelerate launch --multi_gpu -m robustbench_vlm train ...` or `torchrun --nproc-per-node 8 -m ...`.
    """
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.finetune import train_defense

    runtime = runtime_of(out or trained_folder(request.track, request.name), device, save_every)
    checkpoint = runtime.folder / "checkpoint.pt"
    if resume is None and checkpoint.is_file() and runtime.processes.is_main:
        text = (
            f"the training continues from {checkpoint}; give --no-resume if the code of the loss has changed since then"
        )
        note(text, quiet=as_json)
    with training_progress(runtime, as_json=as_json) as on_progress:
        card = train_defense(request, runtime, on_progress, resume=resume)
    if card:
        show_card(card, as_json=as_json)


train = with_options_of(training_request, _train)


def numbers(settings: Sequence[str]) -> dict[str, float]:
    """Parse settings of the form "name=number", and return the number of each name.

    Raise UserError if a setting does not have this form.
    """
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--set must be NAME=NUMBER, such as --set lr=5e-4, got {setting!r}") from None
    return found


def runtime_of(folder: Path, device: str, save_every: int) -> "Runtime":
    """Return where and how a training runs: its folder, its processes, and the steps between two checkpoints."""
    from robustbench_vlm.training.distributed import Processes
    from robustbench_vlm.training.finetune import Runtime

    return Runtime(folder, Processes(device), save_every, note)


@contextlib.contextmanager
def training_progress(runtime: "Runtime", *, as_json: bool) -> Iterator[OnProgress]:
    """Yield a function that shows the progress of a training.

    If there are several processes, only the main process shows progress.
    """
    if not runtime.processes.is_main:
        yield ignore_progress
        return
    note("reading model and images", quiet=as_json)
    with progress("steps", quiet=as_json) as on_progress:
        yield on_progress


def show_card(card: Path, *, as_json: bool) -> None:
    """Print the path of a trained model's card and the command that evaluates it."""
    lines = [Line(f"wrote {card}"), Line(f"next: vlmbench run --model {card}")]
    answer({"card": str(card)}, lambda width: lines, as_json=as_json)
