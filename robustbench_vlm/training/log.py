"""The record of a training: a CSV file that pandas reads, and a picture of its curves."""

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import save_figure, write_whole
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.training.checkpoint import Checkpoint

_LOG_EVERY = 20
"""Steps from one row of the log to the next; each costs two forward passes more."""
_SAVE_SECONDS = 60.0
"""A checkpoint is written after so much time too, where steps are slow."""


@dataclass(frozen=True)
class Row:
    """One logged step; accuracies are those of its batch before the step, in [0, 1]."""

    step: int
    loss: float
    clean: float
    robust: float
    """Against the inner attack."""
    lr: float
    """The learning rate."""
    seconds: float
    """Since the training began, without interruptions."""

    @property
    def state(self) -> str:
        """The row in words."""
        return f"loss {self.loss:.3f}, batch {self.clean:.0%} clean, {self.robust:.0%} robust"


COLUMNS = tuple(field.name for field in fields(Row))


class Log:
    """The file log.csv of a training; rows after `step`, from a run that was cut off, are dropped when it opens."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = [row for row in read_log(path) if row.step <= step] if path.exists() else []
        write_whole(path, lambda partial: _write(partial, rows))

    def add(self, row: Row) -> None:
        """Append a row at once, so that a killed training keeps it."""
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(astuple(row))


class Diverged(UserError):
    """The loss or a weight is no longer finite: the rate is too high."""


class Recorder:
    """Takes what each step of a training gave; writes nothing on a process that only helps (`log` is None then)."""

    def __init__(
        self, checkpoint: Checkpoint, steps: int, save_every: int, log_file: Path | None, on_progress: OnProgress
    ) -> None:
        self._checkpoint, self._steps, self._save_every, self._on_progress = checkpoint, steps, save_every, on_progress
        self._log_file, self._state = log_file, ""

    def begin(self, tower: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Put the checkpoint's state back, if there is one, and return how many steps are behind."""
        self._tower, self._optimizer = tower, optimizer
        self._first, self._before = self._checkpoint.load(tower, optimizer)
        self._log = Log(self._log_file, self._first) if self._log_file else None
        self._saved = time.monotonic()
        self._started = self._saved - self._before
        return self._first

    def shows(self, step: int) -> bool:
        """Say whether the log gets a row after this step."""
        return (step + 1) % _LOG_EVERY == 0 or step + 1 == self._steps

    @property
    def seconds(self) -> float:
        """Since the training began, without interruptions."""
        return time.monotonic() - self._started

    def take(self, step: int, loss: float, accuracies: Mapping[str, float]) -> None:
        """Log, save and report what is due after a step; `accuracies` are the batch's, where the step is shown.

        Raises Diverged where the loss or, when a checkpoint is due, a weight is not finite.
        """
        if not math.isfinite(loss):
            raise Diverged(self._advice(f"the loss is {loss} at step {step}"))
        done, seconds = step + 1, self.seconds
        if self._log and accuracies:
            rate = self._optimizer.param_groups[0]["lr"]
            row = Row(done, loss, accuracies["clean"], accuracies["robust"], rate, round(seconds, 1))
            self._log.add(row)
            self._state = row.state
        pace = (seconds - self._before) / (done - self._first)
        self._on_progress(Progress(done, self._steps, pace * (self._steps - done), self._state))
        self._save(done)

    def _save(self, done: int) -> None:
        due = done % self._save_every == 0 or done == self._steps
        late = self._log is not None and time.monotonic() - self._saved > _SAVE_SECONDS
        if not due and not late:
            return
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._tower.parameters())
        if due and not finite:
            raise Diverged(self._advice(f"a weight is no longer finite after {done} steps"))
        if self._log is not None and finite:
            self._checkpoint.save(self._tower, self._optimizer, done, self.seconds)
            self._saved = time.monotonic()

    def _advice(self, what: str) -> str:
        path = self._checkpoint.path
        kept = f"{path} holds the last good state" if path.exists() else "no checkpoint was written yet"
        return f"{what}: lower the rate by --set lr=...; {kept}"


def read_log(path: Path) -> list[Row]:
    """Return a log's rows; a last line that was cut off is left out."""
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(COLUMNS)][1:]
    return [Row(int(line[0]), *(float(value) for value in line[1:])) for line in lines]


def plot_log(rows: list[Row], path: Path, title: str) -> None:
    """Draw loss and accuracies of the batches against the step into a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row.step for row in rows]
    left.plot(steps, [row.loss for row in rows], color="black", marker=".")
    left.set(xlabel="step", ylabel="loss", title=title)
    for name, colour in (("clean", "tab:blue"), ("robust", "tab:red")):
        right.plot(steps, [100 * getattr(row, name) for row in rows], color=colour, label=name, marker=".")
    right.set(xlabel="step", ylabel="accuracy of the batch, %", ylim=(0, 100))
    right.legend()
    save_figure(figure, path)


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)
