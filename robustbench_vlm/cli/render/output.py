"""Output of the commands: results and JSON documents on stdout, notes on stderr, colours only on a terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import os_reason
from robustbench_vlm.core.text import terminal_text

_UNLIMITED = 10_000
"""Width in characters of a line in a pipe or a file: so large that lines are not wrapped."""


@dataclass(frozen=True)
class Line:
    """One line of output in a style of the library rich. Markup and terminal escapes in the text have no effect."""

    text: str
    style: str = ""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr.

    The environment variables COLUMNS and LINES are used only if they are positive integers.
    """
    environment = dict(os.environ)
    for name in ("COLUMNS", "LINES"):
        text = environment.get(name, "")
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            environment.pop(name, None)
    return Console(stderr=stderr, highlight=False, _environ=environment)


def width() -> int:
    """Return the width of an output line in columns.

    It is COLUMNS if this environment variable is set, or the width of the terminal. For a pipe, the width is not
    limited.
    """
    output = console()
    return output.width if sys.stdout.isatty() or "COLUMNS" in output._environ else _UNLIMITED


def answer(document: Mapping[str, Any], lines: Callable[[int], Iterable[Line]], *, as_json: bool) -> None:
    """Print the result of a command.

    If `as_json` is true, print `document`. If it is false, print the lines that `lines` returns for the width of the
    output.
    """
    if as_json:
        show_document(document)
    else:
        show(lines(width()))


def show(lines: Iterable[Line]) -> None:
    """Print lines on stdout."""
    output = console()
    with _stdout():
        for line in lines:
            output.print(Text(terminal_text(line.text), line.style), soft_wrap=True)


def show_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    with _stdout():
        print(json.dumps(document, indent=2, allow_nan=False))


def note(text: str, *, quiet: bool = False, style: str = "") -> None:
    """Print a sentence on stderr, or nothing if `quiet`. On a terminal, lines break between words."""
    if not quiet:
        output = console(stderr=True)
        # If stderr is full or closed, the note is lost, but the run must continue.
        with contextlib.suppress(OSError):
            output.print(Text(terminal_text(text, keep_newlines=True), style), soft_wrap=not output.is_terminal)


@contextlib.contextmanager
def _stdout() -> Iterator[None]:
    """Raise UserError if stdout cannot be written. If the reader has closed the pipe, no error is raised."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write the output to stdout: {os_reason(error)}, or send the output to another file, then repeat"
            " the command"
        ) from error


def duration(seconds: float) -> str:
    """Return a time in words, such as "45 s", "3 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
