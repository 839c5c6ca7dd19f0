"""How a sweep is shown: a table, a document, and an image."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.cli.render.layout import Columns, table, wrapped
from robustbench_vlm.cli.render.screen import Line
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import save_figure
from robustbench_vlm.core.records import plain
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.sweep import ATTACK, Sweep, Trial

_RULE = "the first of those within a standard error of the highest mean of clean and robust accuracy"


def part(text: str) -> Fraction:
    """Return a part such as 1/4 or 0.25; raise UserError for another text."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--share {text!r} is no part: give one such as 1/4, above 0 and up to 1") from None


def document(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep as one JSON document."""
    return {
        "defense": sweep.job.defense.name,
        "num_images": len(sweep.job.images),
        "held_out": sweep.held_out,
        "attack": ATTACK,
        "eps": _radius(sweep.job),
        "trials": [plain(trial) for trial in sweep.trials],
        "best": plain(sweep.best),
    }


def lines(sweep: Sweep, width: int) -> list[Line]:
    """Return a row for each trial, and what was measured."""
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
    said = (
        f"{job.defense.name}, {len(job.images)} images, {job.schedule.batch_size} a step; accuracies in % on"
        f" {sweep.held_out} held-out images of {job.dataset.name}, robust under {ATTACK} at {_radius(job)}"
    )
    best = sweep.best
    chosen = "all trainings diverged: lower the rate" if best is None else f"choose {_settings(best)}: {_RULE}"
    return [*table(rows, columns, width), Line(""), *wrapped(said, width), *wrapped(chosen, width)]


def plot(sweep: Sweep, path: Path) -> None:
    """Draw clean and robust accuracy against the first setting, a line for each combination of the others."""
    from matplotlib.figure import Figure

    names = list(sweep.trials[0].settings)
    groups: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        groups.setdefault(", ".join(f"{name} {trial.settings[name]:g}" for name in names[1:]), []).append(trial)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("clean", "robust"), strict=True):
        for label, group in groups.items():
            values = [(trial.settings[names[0]], getattr(trial, kind)) for trial in group]
            ended = [(setting, 100 * accuracy) for setting, accuracy in values if accuracy is not None]
            axes.plot(*zip(*ended, strict=True) if ended else ([], []), marker="o", label=label)
        axes.set(xlabel=names[0], ylabel=f"{kind}, %", title=sweep.job.defense.name)
        if names[0] == "lr":
            axes.set_xscale("log")
    if len(names) > 1:
        axes.legend()
    save_figure(figure, path)


def _settings(trial: Trial) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())


def _radius(job: Job) -> str:
    return Threat("Linf", job.eps).eps_text


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f}"
