"""The command `vlmbench sweep`: trains a defense with several settings, and compares the trained models."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from robustbench_vlm.cli.options import Device, Json, check_plot, option, with_options_of
from robustbench_vlm.cli.render.output import Line, answer
from robustbench_vlm.cli.render.text_table import Columns, table, wrapped
from robustbench_vlm.cli.train import ModelFolder, runtime_of, training_progress, training_request
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_vlm.training.job import Job
    from robustbench_vlm.training.request import TrainingRequest
    from robustbench_vlm.training.sweep import Sweep, Trial

_RULE = "the first setting whose mean of clean and robust accuracy is at most one standard error below the highest mean"
_GRID = "Setting with the values to try. Repeat to try all combinations of several settings."
_FRACTION = "Fraction of the training images to train on, such as 1/4."
_Grid = Annotated[list[str], option("--grid", "NAME=N,N,...", _GRID)]
_Fraction = Annotated[str, option("--train-fraction", "FRACTION", _FRACTION)]
_Plot = Annotated[Path | None, option("--plot", "FILE", "PNG or SVG file for a plot of the results.")]


def _sweep(
    request: "TrainingRequest",
    *,
    grid: _Grid,
    train_fraction: _Fraction = "1/4",
    device: Device = "",
    plot: _Plot = None,
    out: ModelFolder = None,
    as_json: Json = False,
) -> None:
    """Train a defense with several settings, and compare the trained models.

    Measures the accuracy of each model on held-out images of the fine-tuning dataset, never on evaluation datasets. If
    the command is stopped, run it again: finished trainings are not repeated.
    """
    from robustbench_vlm.core.files import save_figure
    from robustbench_vlm.models.card import trained_folder
    from robustbench_vlm.training.sweep import run_sweep

    check_plot(plot)
    runtime = runtime_of(out or trained_folder(request.track, f"sweep-{request.name}"), device, 200)
    with training_progress(runtime, as_json=as_json) as on_progress:
        found = run_sweep(request, number_lists(grid), fraction(train_fraction), runtime, on_progress)
    if runtime.processes.is_main:
        save_figure(figure(found), plot or runtime.folder / "sweep.png")
        answer(document(found), lambda width: lines(found, width), as_json=as_json)


sweep = with_options_of(training_request, _sweep)


def number_lists(settings: Sequence[str]) -> dict[str, list[float]]:
    """Parse settings of the form "name=number,number,...", and return the numbers of each name.

    Raise UserError if a setting does not have this form.
    """
    found = {}
    for setting in settings:
        name, _, values = setting.partition("=")
        if name in found:
            raise UserError(
                f"--grid {name} is given twice: give all its values in one option, such as --grid lr=3e-4,1e-3"
            )
        try:
            found[name] = list(dict.fromkeys(float(value) for value in values.split(",")))
        except ValueError:
            raise UserError(f"--grid must be NAME=N,N,..., such as --grid lr=3e-4,1e-3, got {setting!r}") from None
    return found


def fraction(text: str) -> Fraction:
    """Return a fraction such as 1/4 or 0.25. Raise UserError for any other text."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--train-fraction must be above 0 and at most 1, such as 1/4, got {text!r}") from None


def document(sweep: "Sweep") -> dict[str, Any]:
    """Return the sweep as one JSON document."""
    from robustbench_vlm.core.fingerprint import plain
    from robustbench_vlm.training.sweep import ATTACK

    return {
        "defense": sweep.job.defense.name,
        "num_images": len(sweep.job.images),
        "held_out": sweep.held_out,
        "attack": ATTACK,
        "eps": _radius(sweep.job),
        "trials": [plain(trial) for trial in sweep.trials],
        "best": plain(sweep.best),
    }


def lines(sweep: "Sweep", width: int) -> list[Line]:
    """Return a table with one row for each trained model. Sentences below it explain the measurement and the choice."""
    from robustbench_vlm.training.sweep import ATTACK

    columns = Columns((), "", (*sweep.trials[0].settings, "clean", "robust", "seconds"))
    rows = [
        {
            **{name: f"{value:g}" for name, value in trial.settings.items()},
            "clean": _percent(trial.clean),
            "robust": _percent(trial.robust),
            "seconds": f"{trial.seconds:.0f}",
        }
        for trial in sweep.trials
    ]
    job = sweep.job
    about = (
        f"{job.defense.name}, {len(job.images)} images, batch size {job.schedule.batch_size}; accuracies in % on"
        f" {sweep.held_out} held-out images of {job.dataset.name}, robust under {ATTACK} at {_radius(job)}"
    )
    best = sweep.best
    chosen = (
        "all trainings diverged: try lower learning rates (lr)"
        if best is None
        else f"choose {_settings(best)}: {_RULE}"
    )
    return [*table(rows, columns, width), Line(""), *wrapped(about, width), *wrapped(chosen, width)]


def figure(sweep: "Sweep") -> "Figure":
    """Draw clean and robust accuracy as functions of the first setting in the grid.

    Each combination of values of the remaining settings has its own line.
    """
    from matplotlib.figure import Figure

    names = list(sweep.trials[0].settings)
    groups: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        groups.setdefault(", ".join(f"{name} {trial.settings[name]:g}" for name in names[1:]), []).append(trial)
    drawn = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, kind in zip(drawn.subplots(1, 2), ("clean", "robust"), strict=True):
        for label, group in groups.items():
            values = [(trial.settings[names[0]], getattr(trial, kind)) for trial in group]
            ended = [(setting, 100 * accuracy) for setting, accuracy in values if accuracy is not None]
            axes.plot(*zip(*ended, strict=True) if ended else ([], []), marker="o", label=label)
        axes.set(xlabel=names[0], ylabel=f"{kind}, %", title=sweep.job.defense.name)
        if names[0] == "lr":
            axes.set_xscale("log")
    if len(names) > 1:
        axes.legend()
    return drawn


def _settings(trial: "Trial") -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())


def _radius(job: "Job") -> str:
    from robustbench_vlm.core.threat import Threat

    return Threat("Linf", job.eps).eps_text


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else percent(accuracy)
