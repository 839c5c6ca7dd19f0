"""The command `vlmbench check`: tests one registered object, such as a model or an attack, against its contracts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustbench_vlm.cli.options import DEFAULT_TRACK, Device, Json, KindName, TrackName, ValueName
from robustbench_vlm.cli.render.output import Line, answer
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import wrapped

if TYPE_CHECKING:
    from robustbench_vlm.analysis.check_result import CheckResult

_STYLES = {"pass": "", "warn": "yellow", "fail": "red"}


def check(
    kind: KindName, name: ValueName, track: TrackName = DEFAULT_TRACK, device: Device = "", as_json: Json = False
) -> int:
    """Check that one object, such as a model or an attack, has the properties that the benchmark relies on.

    For a model, this measures its preprocessing, gradients, repeatability, memory and speed. Exit code 1: a check
    fails. Objects of plugins get the same checks as objects of this package.
    """
    from robustbench_vlm.analysis import contracts

    with progress("checks", quiet=as_json):
        results = contracts.check(kind.removesuffix("s"), name, track=track, device=device)
    return report(results, as_json=as_json)


def report(checks: "Sequence[CheckResult]", *, as_json: bool) -> int:
    """Print the result of each check, and return the exit code: 0 if no check failed, else 1."""
    passed = all(each.passed for each in checks)
    document = {"passed": passed, "checks": [each.to_json() for each in checks]}
    answer(document, lambda width: [line for each in checks for line in _lines(each, width)], as_json=as_json)
    return 0 if passed else 1


def _lines(check: "CheckResult", width: int) -> list[Line]:
    lines = wrapped(f"{check.status}  {check}", width, indent=" " * 6)
    return [Line(line.text, _STYLES[check.status]) for line in lines]
