"""Progress reports of long operations."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A report on the progress of a long operation, made at its start, after each finished part, and at its end."""

    done: int
    """Number of finished units (samples, training steps, bytes), including units from an earlier call."""
    total: int | None
    """Total number of units of the operation. None means that the number is unknown."""
    seconds_left: float = 0.0
    """Estimated seconds until the end. 0 if there is no estimate."""
    label: str = ""
    """Text about the current part, such as the name of a file or the loss of a training step."""
    passes: int = 0
    """Number of forward and backward passes so far, counted per sample. 0 if the operation does not count passes."""
    step: str = ""
    """The step of an operation with several steps, such as "step 1 of 2". `done` and `total` are those of the step."""


OnProgress = Callable[[Progress], None]
"""Type of every `on_progress` argument: a function that is called with each report."""


def in_step(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    """Return a function for the reports of one of `count` steps of an operation. The first step has the number 1."""
    return lambda progress: on_progress(dataclasses.replace(progress, step=f"step {number} of {count}"))


def ignore_progress(progress: Progress) -> None:
    """Do nothing. This is the default of every `on_progress` argument."""
