"""What reaches the terminal: documents and lines on stdout, notes and progress on stderr, colours only for people."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.text import terminal_text

_SECONDS_BETWEEN_LINES = 10.0
"""How often a pipe or a log file is told of progress."""
_UNLIMITED = 10_000


@dataclass(frozen=True)
class Line:
    """One line of output with one of rich's styles; text from others cannot become markup or a terminal escape."""

    text: str
    style: str = ""


def width() -> int:
    """Return how many columns a line may have: the terminal's, COLUMNS where that is set, no limit in a pipe."""
    return Console().width if sys.stdout.isatty() or os.environ.get("COLUMNS") else _UNLIMITED


def answer(document: Mapping[str, Any], lines: Callable[[int], Iterable[Line]], *, as_json: bool) -> None:
    """Print what a command found: the document if `as_json`, else the lines for the width."""
    if as_json:
        show_document(document)
    else:
        show(lines(width()))


def show(lines: Iterable[Line]) -> None:
    """Print lines on stdout."""
    console = Console(highlight=False)
    for line in lines:
        console.print(Text(terminal_text(line.text), line.style), soft_wrap=True)


def show_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def note(text: str, *, quiet: bool = False, style: str = "") -> None:
    """Print a sentence on stderr, broken between words on a terminal; nothing if `quiet`."""
    if not quiet:
        console = Console(stderr=True, highlight=False)
        console.print(Text(terminal_text(text, keep_newlines=True), style), soft_wrap=not console.is_terminal)


@contextlib.contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[OnProgress]:
    """Give a function that shows progress on stderr: a bar on a terminal, now and then a line elsewhere.

    With `quiet` there are no lines; a terminal still gets its bar, which leaves nothing behind.
    """
    if sys.stderr.isatty():
        with _bar(what) as on_progress:
            yield on_progress
    else:
        yield ignore_progress if quiet else _lines(what)


def duration(seconds: float) -> str:
    """Return a time as people say it: "45 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _lines(what: str) -> OnProgress:
    last = -_SECONDS_BETWEEN_LINES

    def print_line(progress: Progress) -> None:
        nonlocal last
        is_finished = progress.total is not None and progress.done >= progress.total
        if not is_finished and time.monotonic() - last < _SECONDS_BETWEEN_LINES:
            return
        last = time.monotonic()
        total = "" if progress.total is None else f" of {progress.total}"
        left = "" if is_finished else f", about {duration(progress.seconds_left)} left"
        note(f"{progress.done}{total} {what}{left}{f' ({progress.label})' if progress.label else ''}")

    return print_line


@contextlib.contextmanager
def _bar(what: str) -> Iterator[OnProgress]:
    from rich import progress as rich_progress

    class TimeLeft(rich_progress.ProgressColumn):
        """Counts down from the last report to the next."""

        def render(self, task: rich_progress.Task) -> Text:
            left = task.fields["ends"] - time.monotonic()
            return Text(f"about {duration(left)} left" if task.fields["told"] else "")

    columns = (
        rich_progress.BarColumn(bar_width=None),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(what),
    )
    with rich_progress.Progress(
        *columns, TimeLeft(), console=Console(stderr=True), transient=True, expand=True, redirect_stdout=False
    ) as shown:
        task = shown.add_task("", total=None, ends=0.0, told=False)

        def update_bar(progress: Progress) -> None:
            ends = time.monotonic() + progress.seconds_left
            shown.update(task, completed=progress.done, total=progress.total, ends=ends, told=True)

        yield update_bar
