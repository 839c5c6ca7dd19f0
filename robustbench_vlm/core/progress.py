"""Progress reports of long operations."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State of a long operation: at its start, after each part, and at its end."""

    done: int
    """Number of finished units (samples, training steps, bytes), including those that an earlier call finished."""
    total: int | None
    """Number of all units; None if it is not known."""
    seconds_left: float = 0.0
    """Estimated seconds until the end; 0 if there is no estimate."""
    label: str = ""
    """Name of the current part, such as a cell, a file or the loss of a training step."""
    passes: int = 0
    """Forward and backward passes of single samples so far; 0 for operations that do not count them."""


OnProgress = Callable[[Progress], None]
"""Type of every `on_progress` argument: a function that is called with each report."""


def ignore_progress(progress: Progress) -> None:
    """Do nothing; used if a caller gives no `on_progress`."""
