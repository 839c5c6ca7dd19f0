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

ModelFolder = Annotated[Path | None, option("--out", "DIR", "Folder for the weights and the card.")]
_DefenseName = Annotated[
    str,
    typer.Argument(
        metavar="DEFENSE", help="See `vlmbench list defenses`.", autocompletion=completion.BY_KIND["defense"]
    ),
]
_Eps = Annotated[str, option("--eps", "EPS", "Training radius instead of the track's.")]
_Epochs = Annotated[
    int | None, typer.Option("--epochs", metavar="N", min=1, help="Epochs instead of the schedule's number.")
]
_NUM_IMAGES = "Training images instead of the track's number, or of all in --images."
_NumImages = Annotated[int | None, typer.Option("--num-images", metavar="N", min=1, help=_NUM_IMAGES)]
_Seed = Annotated[int, option("--seed", "N", "Seed of all random numbers.")]
_SETTING = "A setting of the defense, or lr, batch_size, warmup, weight_decay, epochs, steps, inner_steps."
_Settings = Annotated[list[str] | None, option("--set", "NAME=NUMBER", _SETTING)]
_IMAGES = "Training images, one folder per class, as ImageNet has them."
_Images = Annotated[Path | None, option("--images", "DIR", _IMAGES)]
_Base = Annotated[str, option("--base", "NAME", "A model to start from instead of the track's: a name or a card file.")]
_Precision = Annotated[str, option("--precision", "NAME", "float32 or bfloat16, only for the training pass.")]
_SaveEvery = Annotated[int, typer.Option("--save-every", metavar="N", min=1, help="Steps between checkpoints.")]
_RESUME = "Require a checkpoint and resume from it, or start from the beginning; if not given, resume if there is one."
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
    """Return the training that the options ask for; raise UserError for values that are not allowed."""
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

    Fine-tunes the track's base model. If it is stopped, the same command resumes it. For several GPUs start it
    with `accelerate launch --multi_gpu -m robustbench_vlm train ...` or `torchrun --nproc-per-node 8 -m ...`.
    """
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.finetune import train_defense

    runtime = runtime_of(out or trained_folder(request.track, request.name), device, save_every)
    with training_progress(runtime, as_json=as_json) as on_progress:
        card = train_defense(request, runtime, on_progress, resume=resume)
    if card:
        show_card(card, as_json=as_json)


train = with_options_of(training_request, _train)


def numbers(settings: Sequence[str]) -> dict[str, float]:
    """Return the settings "name=number" by name; raise UserError for a setting of another form."""
    found = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f"--set {setting!r} is not NAME=NUMBER, as in --set lr=5e-4") from None
    return found


def runtime_of(folder: Path, device: str, save_every: int) -> "Runtime":
    """Return the folder and the processes of a training."""
    from robustbench_vlm.training.distributed import Processes
    from robustbench_vlm.training.finetune import Runtime

    return Runtime(folder, Processes(device), save_every)


@contextlib.contextmanager
def training_progress(runtime: "Runtime", *, as_json: bool) -> Iterator[OnProgress]:
    """Yield a function that shows progress; of several processes only the first one shows it."""
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
