"""The log of a training: log.csv, the progress line, the checkpoints, and a plot of the log."""

import csv
import math
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained, save_figure, write_whole
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.training.checkpoint import Checkpoint

_LOG_EVERY = 20
"""Number of steps from one row of the log to the next row. In fine-tuning, each row costs two more forward passes."""
_SAVE_SECONDS = 60.0
"""The longest time between two checkpoints. If `save_every` steps take longer than this, a checkpoint is saved earlier.
"""


@dataclass(frozen=True)
class Row:
    """One row of the log: measurements of one step and its batch."""

    step: int
    """The number of finished steps, including this step."""
    loss: float
    """The mean loss of the batch."""
    clean: float | None
    """The clean accuracy of the batch before the step, in [0, 1]. In pre-training, it is None."""
    robust: float | None
    """The accuracy of the batch under the inner attack before the step, in [0, 1]. In pre-training, it is None."""
    lr: float
    """The learning rate of the step."""
    seconds: float
    """The duration of the training so far in seconds, without the time of interruptions."""

    @property
    def state(self) -> str:
        """The loss and the accuracies of the row as text for the progress line."""
        if self.clean is None or self.robust is None:
            return f"loss {self.loss:.3f}"
        return f"loss {self.loss:.3f}, batch {self.clean:.0%} clean, {self.robust:.0%} robust"


COLUMNS = tuple(field.name for field in fields(Row))


class Diverged(UserError):
    """Raised if the loss or a weight of a training is not finite. Usually, the learning rate is too high."""


class Log:
    """The file log.csv of a training.

    The constructor removes the rows after `step`, which an interrupted training wrote after its last checkpoint.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        rows = [row for row in read_log(path) if row.step <= step] if step and path.exists() else []
        write_whole(path, lambda partial: _write(partial, rows))

    def add(self, row: Row) -> None:
        """Append a row to the file and close the file, so that the row is kept if the training is killed.

        Raises UserError if the file cannot be written, such as on a full disk.
        """
        with explained(self._path), self._path.open("a", newline="") as file:
            csv.writer(file).writerow(astuple(row))


class Recorder:
    """Write the log and the checkpoints of a training and report its progress.

    `log_file` is None in processes that write no files.
    """

    def __init__(
        self, checkpoint: Checkpoint, steps: int, save_every: int, log_file: Path | None, on_progress: OnProgress
    ) -> None:
        self._checkpoint, self._steps, self._save_every, self._on_progress = checkpoint, steps, save_every, on_progress
        self._log_file, self._state = log_file, ""

    def begin(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restore the state of the training if a checkpoint exists. Return the number of finished steps."""
        self._network, self._optimizer = network, optimizer
        self._first, self._before = self._checkpoint.load(network, optimizer)
        self._log = Log(self._log_file, self._first) if self._log_file else None
        self._saved = time.monotonic()
        self._started = self._saved - self._before
        return self._first

    def logs(self, step: int) -> bool:
        """Return whether the log gets a row for the step with the index `step`. The first step has index 0."""
        return (step + 1) % _LOG_EVERY == 0 or step + 1 == self._steps

    @property
    def seconds(self) -> float:
        """The duration of the training so far in seconds, without the time of interruptions."""
        return time.monotonic() - self._started

    def record(self, step: int, loss: float, accuracies: Mapping[str, float]) -> None:
        """Report a step. Write a row of the log if a row is due, and a checkpoint if a checkpoint is due.

        `accuracies` has the "clean" and the "robust" accuracy of the batch, in [0, 1]. `accuracies` is empty if they
        were not measured. Raises Diverged if the loss is not finite, or if a weight is not finite when a checkpoint is
        due.
        """
        if not math.isfinite(loss):
            raise self.diverged(f"the loss is {loss} at step {step}, not a finite number")
        done, seconds = step + 1, self.seconds
        if self._log and self.logs(step):
            lr = self._optimizer.param_groups[0]["lr"]
            row = Row(done, loss, accuracies.get("clean"), accuracies.get("robust"), lr, round(seconds, 1))
            self._log.add(row)
            self._state = row.state
        seconds_per_step = (seconds - self._before) / (done - self._first)
        seconds_left = seconds_per_step * (self._steps - done)
        self._on_progress(Progress(done, self._steps, seconds_left, self._state))
        self._save(done)

    def _save(self, done: int) -> None:
        due = done % self._save_every == 0 or done == self._steps
        late = self._log is not None and time.monotonic() - self._saved > _SAVE_SECONDS
        if not due and not late:
            return
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in self._network.parameters())
        if due and not finite:
            raise self.diverged(f"a weight is not a finite number after {done} steps")
        if self._log is not None and finite:
            self._checkpoint.save(self._network, self._optimizer, done, self.seconds)
            self._saved = time.monotonic()

    def diverged(self, problem: str) -> Diverged:
        """Return the error for a training with a loss or weight that is not finite."""
        path = self._checkpoint.path
        kept = f"{path} is the last checkpoint" if path.exists() else "no checkpoint was written yet"
        return Diverged(f"{problem}: lower the learning rate (`vlmbench train --set lr=...`); {kept}")


def read_log(path: Path) -> list[Row]:
    """Return the rows of a log.

    A last line without a line break is skipped, because an interrupted training may leave such a line. Raises UserError
    if the file cannot be read or another line is not a row of a log.
    """
    advice = "remove the file and repeat the command; the training continues from its checkpoint"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror}; {advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the log {path} is not a text file: {advice}") from error
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines or lines[0].split(",") != list(COLUMNS):
        raise UserError(f"the log {path} does not begin with the line {','.join(COLUMNS)}: {advice}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            rows.append(_row(*line.split(",")))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"line {number} of the log {path} is not a row with {len(COLUMNS)} numbers: {advice}"
            ) from error
    return rows


def _row(step: str, loss: str, clean: str, robust: str, lr: str, seconds: str) -> Row:
    accuracies = (float(clean) if clean else None, float(robust) if robust else None)
    return Row(int(step), float(loss), *accuracies, float(lr), float(seconds))


def plot_log(rows: list[Row], path: Path, title: str) -> None:
    """Plot the loss and the accuracies against the step, and write the plot as a PNG or SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row.step for row in rows]
    accuracies = {
        name: [math.nan if getattr(row, name) is None else 100 * getattr(row, name) for row in rows]
        for name in ("clean", "robust")
    }
    left.plot(steps, [row.loss for row in rows], color="black", marker=".")
    left.set(xlabel="step", ylabel="loss", title=title)
    for name, colour in (("clean", "tab:blue"), ("robust", "tab:red")):
        right.plot(steps, accuracies[name], color=colour, label=name, marker=".")
    right.set(xlabel="step", ylabel="accuracy of the batch, %", ylim=(0, 100))
    right.legend()
    save_figure(figure, path)


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(row) for row in rows)
