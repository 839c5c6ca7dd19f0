"""The commands that train: `pretrain`, `train` and `sweep`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_vlm.cli import completion
from robustbench_vlm.cli.options import (
    TRACK,
    Device,
    Json,
    TrackName,
    check_plot,
    number_lists,
    numbers,
    option,
    with_options_of,
)
from robustbench_vlm.cli.render import screen
from robustbench_vlm.core.progress import OnProgress, ignore_progress

if TYPE_CHECKING:
    from robustbench_vlm.training.finetune import Runtime
    from robustbench_vlm.training.request import TrainingRequest

_Folder = Annotated[Path | None, option("--out", "DIR", "Where the weights and the card go.")]
_DefenseName = Annotated[
    str,
    typer.Argument(
        metavar="DEFENSE", help="See `vlmbench list defenses`.", autocompletion=completion.BY_KIND["defense"]
    ),
]
_Eps = Annotated[str, option("--eps", "EPS", "Training radius instead of the track's.")]
_Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", min=1, help="Instead of the schedule's.")]
_NumImages = Annotated[
    int | None, typer.Option("--num-images", metavar="N", min=1, help="Instead of the track's, or all.")
]
_Seed = Annotated[int, option("--seed", "N", "Of everything that is drawn at random.")]
_SETTING = "A number of the defense, or lr, batch_size, warmup, weight_decay, epochs, steps, inner_steps."
_Settings = Annotated[list[str] | None, option("--set", "NAME=NUMBER", _SETTING)]
_OVER = "A setting with its values; repeat for every combination."
_Images = Annotated[
    Path | None, option("--images", "DIR", "Training images, one folder a class, as ImageNet has them.")
]
_Base = Annotated[str, option("--base", "NAME", "A model to start from instead of the track's: a name or a card file.")]
_Precision = Annotated[str, option("--precision", "NAME", "float32 or bfloat16, of the training pass alone.")]
_SaveEvery = Annotated[int, typer.Option("--save-every", metavar="N", min=1, help="Steps between checkpoints.")]
_RESUME = "Insist on going on from a checkpoint, or begin anew; without it, go on where there is one."
_Resume = Annotated[bool | None, typer.Option("--resume/--no-resume", help=_RESUME)]


def pretrain(track: TrackName = TRACK, out: _Folder = None, as_json: Json = False) -> None:
    """Pre-train a track's base model.

    The same command goes on where an earlier one was stopped.
    """
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.pretrain import pretrain_base

    with screen.progress("steps", quiet=as_json) as on_progress:
        card = pretrain_base(track, out or trained_folder(track, "base"), on_progress)
    _show_card(card, as_json=as_json)


def training_request(
    defense: _DefenseName,
    track: TrackName = TRACK,
    images: _Images = None,
    eps: _Eps = "",
    epochs: _Epochs = None,
    num_images: _NumImages = None,
    seed: _Seed = 0,
    settings: _Settings = None,
    base: _Base = "",
    precision: _Precision = "float32",
) -> "TrainingRequest":
    """Return what the options ask to train; raise UserError for texts that are no radius or setting."""
    from robustbench_vlm.core.threat import parse_eps
    from robustbench_vlm.training.request import TrainingRequest

    radius = parse_eps(eps) if eps else None
    return TrainingRequest(
        defense, track, radius, epochs, num_images, seed, numbers(settings or []), images, base, precision
    )


def takes_training_request(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that has the options of `training_request` in place of its first parameter, the request."""
    return with_options_of(training_request, command)


@takes_training_request
def train(
    request: "TrainingRequest",
    device: Device = "",
    save_every: _SaveEvery = 200,
    resume: _Resume = None,
    out: _Folder = None,
    as_json: Json = False,
) -> None:
    """Train a defense.

    Fine-tunes the track's base model; the same command goes on where an earlier one was stopped. For several GPUs begin
    with `accelerate launch --multi_gpu -m robustbench_vlm train ...` or `torchrun --nproc-per-node 8 -m ...`.
    """
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.finetune import train_defense

    runtime = _runtime(out or trained_folder(request.track, request.name), device, save_every)
    with _progress(runtime, as_json=as_json) as on_progress:
        card = train_defense(request, runtime, on_progress, resume=resume)
    if card:
        _show_card(card, as_json=as_json)


@takes_training_request
def sweep(
    request: "TrainingRequest",
    *,
    over: Annotated[list[str], option("--over", "NAME=N,N,...", _OVER)],
    share: Annotated[str, option("--share", "PART", "Part of the images to train on, as 1/4.")] = "1/4",
    device: Device = "",
    plot: Annotated[Path | None, option("--plot", "FILE", "A PNG or SVG file for the picture of the table.")] = None,
    out: _Folder = None,
    as_json: Json = False,
) -> None:
    """Train a defense with several settings.

    Each is measured on images of the fine-tuning set that no training sees, never on evaluation sets. Trainings that
    are done already are not done again.
    """
    from robustbench_vlm.cli.render import sweep as sweeps
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.sweep import run_sweep

    check_plot(plot)
    runtime = _runtime(out or trained_folder(request.track, f"sweep-{request.name}"), device, 200)
    with _progress(runtime, as_json=as_json) as on_progress:
        found = run_sweep(request, number_lists(over), sweeps.part(share), runtime, on_progress)
    if runtime.processes.is_main:
        sweeps.plot(found, plot or runtime.folder / "sweep.png")
        screen.answer(sweeps.document(found), lambda width: sweeps.lines(found, width), as_json=as_json)


@contextlib.contextmanager
def _progress(runtime: "Runtime", *, as_json: bool) -> Iterator[OnProgress]:
    """Show progress, on the first of several processes alone."""
    if not runtime.processes.is_main:
        yield ignore_progress
        return
    screen.note("reading model and images", quiet=as_json)
    with screen.progress("steps", quiet=as_json) as on_progress:
        yield on_progress


def _runtime(folder: Path, device: str, save_every: int) -> "Runtime":
    from robustbench_vlm.training.distributed import Processes
    from robustbench_vlm.training.finetune import Runtime

    return Runtime(folder, Processes(device), save_every)


def _show_card(card: Path, *, as_json: bool) -> None:
    lines = [screen.Line(f"wrote {card}"), screen.Line(f"next: vlmbench run --model {card}")]
    screen.answer({"card": str(card)}, lambda width: lines, as_json=as_json)
