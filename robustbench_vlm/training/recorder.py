"""What a training writes and tells after each step: log, checkpoints, progress; and where it ends for good."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import Tell
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.log import Log, Row

_LOG_EVERY = 20
"""Steps from one row of the log to the next; each costs two forward passes more."""
_SAVE_SECONDS = 60.0
"""A checkpoint is written after so much time too, where steps are slow."""


class Diverged(UserError):
    """The loss or a weight is no longer finite: the rate is too high."""


class Recorder:
    """Takes what each step of a training gave; writes nothing on a process that only helps (`log` is None then)."""

    def __init__(self, checkpoint: Checkpoint, steps: int, save_every: int, log_file: Path | None, tell: Tell) -> None:
        self._checkpoint, self._steps, self._save_every, self._tell = checkpoint, steps, save_every, tell
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
        """Log, save and tell what is due after a step; `accuracies` are the batch's, where the step is shown.

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
        self._tell(done, self._steps, pace * (self._steps - done), self._state)
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
