"""Arguments of the Python interface: names, radii and numbers that a user gives, and the equivalent command line."""

import os
import shlex
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import exact_eps
from robustbench_vlm.engine.request import Request

_HOW_TO_NAME = {
    "attacks": " To use your own attack, register it with an entry point (see CONTRIBUTING.md) and give its name",
}
"""Advice for users who give an object in place of a name."""

Names = str | Path | Iterable[str | Path]
"""One name or file path, or several names or file paths."""
Count = int | Literal["all"] | None
"""A number of samples, "all", or None for the protocol's number."""


def names_of(what: str, given: Any) -> tuple[str, ...]:
    """Return one or several names as a tuple. Raises UserError for a value that is not a text."""
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    names = tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in names)
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise UserError(
            f"{what} must be names, got {type(wrong[0]).__name__}: each worker process loads them by name."
            + _HOW_TO_NAME.get(what, "")
        )
    return names


def radii_of(eps: float | str | Fraction | Sequence[float | str | Fraction] | None) -> tuple[Fraction, ...]:
    """Return one or several radii as exact numbers. Raises UserError for a value that is not a radius."""
    if eps is None:
        return ()
    radii = (eps,) if isinstance(eps, str) or not isinstance(eps, Iterable) else tuple(eps)
    return tuple(exact_eps(each) for each in radii)


def checked_half_width(given: Any) -> float:
    """Return a half-width in [0, 0.5); raise UserError for any other value."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 0.5:
        raise UserError(
            f"half_width must be a number from 0 to 0.5, got {given!r}: give 0.01 for an interval of plus or minus 1"
            " percentage point, or 0 to attack all samples in full"
        )
    return float(given)


def command_of(request: Request) -> str:
    """Return the equivalent command line. It is written to the manifest of the run."""
    options = [("--model", name) for name in request.models]
    options += [("--attack", name) for name in request.attacks]
    options += [("--dataset", name) for name in request.datasets]
    options += [("--eps", str(eps)) for eps in request.eps]
    options += [("--images", str(request.images))] if request.images else []
    options += [("--prompt", request.prompt)] if request.prompt else []
    single = (
        ("--track", request.track),
        ("--norm", request.norm),
        ("--protocol", request.protocol),
        ("--samples", str(request.samples or "")),
        ("--half-width", f"{request.half_width * 100:g}" if request.half_width else ""),
        ("--draws", str(request.draws or "")),
        ("--eot", str(request.eot or "")),
    )
    options += [option for option in single if option[1]]
    return shlex.join(["vlmbench", "run", *(word for pair in options for word in pair)])


def check_count(name: str, count: Any) -> None:
    """Raise UserError if a count is not an integer of 0 or more. `name` is the name of the argument."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UserError(
            f"{name} must be an integer of 0 or more, got {count!r}: leave it out to use the number that fits this"
            " machine"
        )


def checked_samples(samples: Count) -> Count:
    """Return a number of samples, "all" or None; raise UserError for any other value."""
    if samples not in (None, "all") and (not isinstance(samples, int) or samples < 1):
        raise UserError(
            f"samples must be a positive integer or 'all', got {samples!r}: omit it to use the protocol's number"
        )
    return samples
