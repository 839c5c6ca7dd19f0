"""Tests of curves of robust accuracy over eps: properties, the command, Python, and messages."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.api import evaluate
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.eps_curve import curve_of, curve_radii, curve_request
from robustbench_vlm.engine.request import Request


def record(number: int, broken_by: str, distance: float) -> SampleResult:
    return SampleResult(str(number), "", 0, 0, 1, broken_by, distance, 1, 1, 0.1, "")


RECORDS = st.lists(
    st.tuples(st.sampled_from(["", CLEAN, "min-eps"]), st.floats(0, 10 / 255)), min_size=1, max_size=12
).map(lambda rows: [record(n, by, away if by == "min-eps" else 0.0) for n, (by, away) in enumerate(rows)])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=RECORDS, other=RECORDS)
def test_a_curve_never_increases_and_starts_and_ends_with_the_accuracies_of_the_run(
    rows: list[SampleResult], other: list[SampleResult]
) -> None:
    threat = Threat("Linf", Fraction(10, 255))
    points = curve_of("m", "min-eps", "mini", threat, {"shapes": rows, "colours": other}, None)
    for dataset in ("shapes", "colours", "mean"):
        values = [point.robust.value for point in points if point.dataset == dataset]
        assert len(values) == 11 and values == sorted(values, reverse=True)
    first = next(point for point in points if point.dataset == "shapes")
    positive = sum(row.broken_by != CLEAN and not (row.broken_by and row.distance == 0) for row in rows)
    assert first.eps == "0/255" and first.robust.value == positive / len(rows)
    last = [point for point in points if point.dataset == "shapes"][-1]
    assert last.eps == "10/255" and last.robust.value == sum(row.broken_by == "" for row in rows) / len(rows)


def test_the_radii_are_multiples_of_a_pixel_step_or_ten_parts() -> None:
    assert curve_radii(Threat("Linf", Fraction(3, 255))) == [Fraction(n, 255) for n in range(4)]
    assert curve_radii(Threat("L2", Fraction(2))) == [Fraction(n, 5) for n in range(11)]
    assert len(curve_radii(Threat("Linf", Fraction(1, 7)))) == 11


def test_the_command_and_python_give_the_same_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--dataset", "shapes", "--samples", "2", "--workers", "1", "--out", str(tmp_path)]
    assert run_command(["run", "--model", "agft", "--eps-curve", "--json", *place]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["attack"] == "min-eps" and document["eps"] == "10/255"
    result = evaluate("agft", "min-eps", eps="10/255", datasets="shapes", samples=2, workers=1, out=tmp_path)
    assert result.eps_curve().to_dict("records") == document["curve"]
    assert len(result.eps_curve(["5/255"])) == 2
    with pytest.raises(UserError, match=r"the radius 12/255 is larger than 10/255.*evaluate with eps='12/255'"):
        result.eps_curve(["12/255"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ("pgd-20",)}, "uses the attack min-eps, got --attack pgd-20: leave --attack out"),
        ({"eps": ("1/255", "2/255")}, "takes one --eps, the largest radius of the curve, got 2"),
        ({"eps": ("0/255",)}, "needs an --eps above 0"),
        ({"half_width": 0.01}, "--half-width does not work with --eps-curve"),
    ],
)
def test_a_curve_that_cannot_be_measured_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        curve_request(Request(models=("agft",), **arguments))


def test_a_curve_needs_records_of_min_eps() -> None:
    with pytest.raises(UserError, match="needs records of the attack min-eps, got fgsm"):
        curve_of("m", "fgsm", "mini", Threat("Linf", Fraction(1, 255)), {}, None)
