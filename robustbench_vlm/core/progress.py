"""Progress reports of long operations."""

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


OnProgress = Callable[[Progress], None]
"""Type of every `on_progress` argument: a function that is called with each report."""


def ignore_progress(progress: Progress) -> None:
    """Do nothing. This is the default of every `on_progress` argument."""
