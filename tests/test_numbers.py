"""Numbers: every output rounds an accuracy to the same digits, and prints a radius as the same text."""

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import evidence, write_board_entry

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.numbers import decimals, percent, percent_interval, percentage_points
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.site import site_files, texts
from robustbench_vlm.leaderboard.views import markdown
from robustbench_vlm.tracks import MINI

PACKAGE = Path(__file__).parents[1] / "robustbench_vlm"


def half_away(number: Fraction, digits: int) -> str:
    """Return an exact number with some decimals, rounded half away from zero with integers only."""
    scaled = abs(number) * 10**digits
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    text = f"{Decimal(whole).scaleb(-digits):f}"
    return f"-{text}" if number < 0 and whole else text


@given(n=st.integers(1, 50_000), data=st.data(), digits=st.integers(0, 3))
def test_an_accuracy_is_rounded_by_its_exact_value(n: int, data: st.DataObject, digits: int) -> None:
    right = data.draw(st.integers(0, n))
    expected = half_away(Fraction(100 * right, n), digits)
    assert percent(right / n, digits) == expected
    assert percent_interval(0.0, right / n, digits) == f"{percent(0.0, digits)}-{expected}"


@given(n=st.integers(1, 5_000), first=st.integers(0, 5_000), second=st.integers(0, 5_000))
def test_a_difference_is_rounded_like_its_opposite(n: int, first: int, second: int) -> None:
    difference = first % (n + 1) / n - second % (n + 1) / n
    there, back = percentage_points(difference), percentage_points(-difference)
    assert there[1:] == back[1:] and (there[0] != back[0] or there == back == "+0.0")


@pytest.mark.parametrize(
    ("share", "expected"),
    [(13 / 16, "81.3"), (577 / 2000, "28.9"), (0.0105, "1.1"), (0.1 + 0.2, "30.0"), (1.0, "100.0"), (0.00049, "0.0")],
)
def test_halves_are_rounded_up(share: float, expected: str) -> None:
    assert percent(share) == expected


def test_a_difference_that_is_rounded_to_zero_has_a_plus() -> None:
    assert percentage_points(-1e-9) == percentage_points(0.0) == "+0.0" and decimals(-1e-9, 3) == "0.000"


@given(counts=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), min_size=2, max_size=13), data=st.data())
def test_the_mean_does_not_depend_on_the_order_of_the_datasets(
    counts: list[tuple[int, int]], data: st.DataObject
) -> None:
    accuracies = [Accuracy.of_counts(min(right, n), n) for right, n in counts]
    exact = sum(Fraction(min(right, n), n) for right, n in counts) / len(counts)
    assert Accuracy.mean(accuracies).value == float(exact)
    assert Accuracy.mean(data.draw(st.permutations(accuracies))).value == float(exact)


def test_means_that_are_equal_as_fractions_are_equal() -> None:
    first, second = ([Accuracy.of_counts(right, 10) for right in rights] for rights in ((1, 2, 3), (2, 2, 2)))
    assert Accuracy.mean(first).value == Accuracy.mean(second).value


@given(eps=st.fractions(0, 1, max_denominator=10_000))
def test_a_linf_radius_is_printed_over_255_if_this_is_exact(eps: Fraction) -> None:
    text = Threat("Linf", eps).eps_text
    steps = (255 * eps).denominator
    while steps % 2 == 0:
        steps //= 2
    while steps % 5 == 0:
        steps //= 5
    assert parse_eps(text) == eps and text.endswith("/255") == (steps == 1)
    assert texts.radius(str(eps), "Linf") == text


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Return the folder of a board whose models have 13 and 5 of 16 robust samples (81.25 % and 31.25 %) at 1/16."""
    for model, robust in (("good", 13), ("weak", 5)):
        verdicts = [""] * robust + ["square"] * (16 - robust)
        found = [evidence(model, verdicts, name, eps=eps) for name in MINI.datasets for eps in ("5/255", "1/16")]
        write_board_entry(found, tmp_path / "mini")
    return tmp_path / "mini"


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "html", "heat map"])
def test_every_format_of_a_comparison_has_the_same_digits(form: str, halves: Path, tmp_path: Path) -> None:
    figure = tmp_path / "heat.svg"
    output = tmp_path / "text"
    command = ["compare", str(halves / "good.json"), str(halves / "weak.json"), "--eps", "1/16", "--out", str(output)]
    extra = ["--heatmap", str(figure)] if form == "heat map" else ["--format", form]
    assert run_command([*command, *extra]) == 0
    text = (figure if form == "heat map" else output).read_text(encoding="utf-8")
    # An SVG file has each of its texts in a comment.
    text = " ".join(re.findall("<!-- (.*?) -->", text)) if form == "heat map" else text
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
    assert {"81.3", "31.3"} <= numbers and not {"81", "81.2", "31", "31.2"} & numbers
    assert "15.9375/255" in text and "1/16" not in text


def test_the_board_and_its_pages_have_the_same_digits(halves: Path) -> None:
    board = make_board("mini", halves)
    pages = site_files([board])
    for text in (markdown(board), pages["mini/index.html"], pages["mini/models/good.html"], pages["index.html"]):
        assert re.search(r"\b81\.3\b", text) and "81.2 " not in text
    assert "15.9375/255" in pages["mini/models/good.html"] + pages["mini/index.html"]


def test_no_module_formats_a_percentage_itself() -> None:
    pattern = re.compile(r"100 \* [^{}]*:[+>\d]*\.\d|100 \* [^{}]*\)?\|\s*round")
    assert pattern.search("{100 * share.value:.1f}") and not pattern.search("100 * value for value in row")
    own = Path("core/numbers.py")
    found = [
        path.relative_to(PACKAGE)
        for suffix in ("*.py", "*.html")
        for path in PACKAGE.rglob(suffix)
        if pattern.search(path.read_text("utf-8"))
    ]
    assert [path for path in found if path != own] == []
