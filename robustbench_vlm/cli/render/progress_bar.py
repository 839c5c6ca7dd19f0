"""Progress of a command on stderr: a bar on a terminal, or a line every few seconds in a pipe or a log file."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from rich.text import Text

from robustbench_vlm.cli.render.output import console, duration, note
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress

_SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress in a pipe or a log file. Without progress, a line with the time is printed."""


@contextlib.contextmanager
def progress(unit: str, *, quiet: bool = False) -> Iterator[OnProgress]:
    """Yield a function that shows the progress, such as "30 of 100 samples". `unit` is the word after the numbers.

    On a terminal, the function shows a bar, which is removed at the end. In a pipe or a log file, it prints lines, or
    nothing if `quiet` is true. A line is also printed if there was no other line for ten seconds.
    """
    if sys.stderr.isatty():
        with _bar(unit) as on_progress:
            yield on_progress
    elif quiet:
        yield ignore_progress
    else:
        lines = _Lines(unit)
        with lines.repeated():
            yield lines


class _Lines:
    """Prints progress as lines, at most one in ten seconds, except for the last one."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._begun = self._last_line = time.monotonic()
        self._last_progress = -_SECONDS_BETWEEN_LINES
        self._text = "working"

    def __call__(self, progress: Progress) -> None:
        is_finished = progress.total is not None and progress.done >= progress.total
        total = "" if progress.total is None else f" of {progress.total}"
        self._text = f"{_step(progress)}{progress.done}{total} {self._unit}"
        if not is_finished and time.monotonic() - self._last_progress < _SECONDS_BETWEEN_LINES:
            return
        self._last_progress = time.monotonic()
        left = "" if is_finished else f", about {duration(progress.seconds_left)} left"
        self._print(f"{self._text}{left}{f' ({progress.label})' if progress.label else ''}")

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Return a context manager. In its body, a thread prints a line whenever there was none for ten seconds."""
        ended = threading.Event()
        thread = threading.Thread(target=self._repeat, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _repeat(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.05, self._last_line + _SECONDS_BETWEEN_LINES - time.monotonic())):
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._print(f"{self._text}, {duration(time.monotonic() - self._begun)} so far")

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        note(text)


def _step(progress: Progress) -> str:
    return f"{progress.step}: " if progress.step else ""


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[OnProgress]:
    from rich import progress as rich_progress

    class TimeLeft(rich_progress.ProgressColumn):
        """Column with the remaining time. It also counts down between two calls of the progress function."""

        def render(self, task: rich_progress.Task) -> Text:
            left = task.fields["ends"] - time.monotonic()
            return Text(f"about {duration(left)} left" if task.fields["started"] else "")

    columns = (
        rich_progress.TextColumn("{task.description}"),
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
            shown.update(
                task,
                description=_step(progress),
                completed=progress.done,
                total=progress.total,
                ends=ends,
                started=True,
            )

        yield update_bar
