"""The command `vlmbench check`: tests one registered object, such as a model or an attack, against its contracts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustbench_vlm.cli.options import DEFAULT_TRACK, Json, KindName, TrackName, ValueName
from robustbench_vlm.cli.render.output import Line, answer

if TYPE_CHECKING:
    from robustbench_vlm.analysis.contracts import Contract
    from robustbench_vlm.analysis.doctor import Check


def check(kind: KindName, name: ValueName, track: TrackName = DEFAULT_TRACK, as_json: Json = False) -> int:
    """Check one model, dataset, attack, defense or track against its contracts.

    Exit code 1: a contract is broken. The contracts are the same for the package and for plugins.
    """
    from robustbench_vlm.analysis import contracts

    return report(contracts.check(kind.removesuffix("s"), name, track=track), as_json=as_json)


def report(checks: "Sequence[Contract | Check]", *, as_json: bool) -> int:
    """Print one line for each check, and return the exit code: 0 if all checks passed, else 1."""
    passed = all(each.passed for each in checks)
    document = {
        "passed": passed,
        "checks": [{"name": each.name, "passed": each.passed, "detail": each.detail} for each in checks],
    }
    answer(document, lambda width: [_line(each) for each in checks], as_json=as_json)
    return 0 if passed else 1


def _line(each: "Contract | Check") -> Line:
    text = f"{'ok    ' if each.passed else 'FAILED'}  {each.name}{f' ({each.detail})' if each.detail else ''}"
    return Line(text, "" if each.passed else "red")
