"""Progress reports of long operations."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The state of a long operation, reported at its start, after each part, and at its end."""

    done: int
    """Number of finished units (samples, training steps, bytes), including those that an earlier call finished."""
    total: int | None
    """Number of all units; None if unknown."""
    seconds_left: float = 0.0
    """Estimated seconds until the end; 0 without an estimate."""
    label: str = ""
    """Text about the current part, such as the name of a file or the loss of a training step."""
    passes: int = 0
    """Forward and backward passes so far, counted per sample; 0 for operations that do not count them."""


OnProgress = Callable[[Progress], None]
"""Type of every `on_progress` argument: a function that is called with each report."""


def ignore_progress(progress: Progress) -> None:
    """Do nothing; the default of every `on_progress` argument."""
