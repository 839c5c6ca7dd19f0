"""Progress of a command on stderr: a bar on a terminal, or a line every few seconds in a pipe or a log file."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.text import Text

from robustbench_vlm.cli.render.output import console, duration, note
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress

_SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress in a pipe or a log file."""


@contextlib.contextmanager
def progress(unit: str, *, quiet: bool = False) -> Iterator[OnProgress]:
    """Yield a function that shows the progress, such as "30 of 100 samples". `unit` is the word after the numbers.

    On a terminal, the function shows a bar, which is removed at the end. In a pipe or a log file, it prints lines, or
    nothing if `quiet` is true.
    """
    if sys.stderr.isatty():
        with _bar(unit) as on_progress:
            yield on_progress
    else:
        yield ignore_progress if quiet else _lines(unit)


def _lines(unit: str) -> OnProgress:
    last = -_SECONDS_BETWEEN_LINES

    def print_line(progress: Progress) -> None:
        nonlocal last
        is_finished = progress.total is not None and progress.done >= progress.total
        if not is_finished and time.monotonic() - last < _SECONDS_BETWEEN_LINES:
            return
        last = time.monotonic()
        total = "" if progress.total is None else f" of {progress.total}"
        left = "" if is_finished else f", about {duration(progress.seconds_left)} left"
        note(f"{progress.done}{total} {unit}{left}{f' ({progress.label})' if progress.label else ''}")

    return print_line


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[OnProgress]:
    from rich import progress as rich_progress

    class TimeLeft(rich_progress.ProgressColumn):
        """Column with the remaining time. It also counts down between two calls of the progress function."""

        def render(self, task: rich_progress.Task) -> Text:
            left = task.fields["ends"] - time.monotonic()
            return Text(f"about {duration(left)} left" if task.fields["started"] else "")

    columns = (
        rich_progress.BarColumn(bar_width=None),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
    )
    with rich_progress.Progress(
        *columns, TimeLeft(), console=console(stderr=True), transient=True, expand=True, redirect_stdout=False
    ) as shown:
        task = shown.add_task("", total=None, ends=0.0, started=False)

        def update_bar(progress: Progress) -> None:
            ends = time.monotonic() + progress.seconds_left
            shown.update(task, completed=progress.done, total=progress.total, ends=ends, started=True)

        yield update_bar
