"""Test the recorded run times and the ranges that follow from them."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robustbench_vlm.core.progress import Progress
from robustbench_vlm.engine import run_times
from robustbench_vlm.engine.compute import seconds_left
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.estimated_cost import estimated_cost
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run_plan
from robustbench_vlm.engine.run_times import calibrate, read_calibration, record_run
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

ONE = Resources("cpu", 1)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file of run times in an empty cache folder."""
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "run_times.json"


@pytest.mark.parametrize(("usual", "spread"), [(1.3, 0.2), (4.0, 0.1), (0.8, 0.25)])
def test_the_range_has_nine_of_ten_later_runs(usual: float, spread: float) -> None:
    draw = random.Random(0)
    inside = widths = 0.0
    for _ in range(1000):
        *earlier, following = (usual * math.exp(draw.gauss(0, spread)) for _ in range(6))
        found = calibrate(earlier)
        inside += found.ratio / found.spread <= following <= found.ratio * found.spread
        widths += found.spread
    assert inside / 1000 >= 0.9
    # More runs make the range narrower than the range without any run.
    assert widths / 1000 < calibrate([]).spread


def test_the_range_has_nine_of_ten_timed_runs_in_any_order() -> None:
    report = json.loads((Path(__file__).parents[2] / "benchmarks" / "planning.json").read_text())
    ratios = [row["ratio"] for row in report["times"]["rows"]]
    draw, inside = random.Random(0), []
    for _ in range(30):
        draw.shuffle(ratios)
        for number, ratio in enumerate(ratios):
            found = calibrate(ratios[:number])
            inside.append(found.ratio / found.spread <= ratio <= found.ratio * found.spread)
    assert sum(inside) / len(inside) >= 0.9


def test_recorded_runs_of_this_machine_change_the_estimate(file: Path) -> None:
    before, _ = read_calibration(ONE)
    for _ in range(4):
        record_run(ONE, 20.0, 60.0)
    record_run(Resources("cpu", 2), 20.0, 400.0)  # other workers
    after, notes = read_calibration(ONE)
    assert (before.runs, after.runs, notes) == (0, 4, ())
    assert after.ratio == pytest.approx(3.0, rel=0.12) and after.spread < before.spread
    assert len(json.loads(file.read_text())) == 5


def test_short_runs_are_not_recorded_and_the_file_stays_small(file: Path) -> None:
    record_run(ONE, 20.0, 9.0)
    assert not file.exists()
    for number in range(run_times._KEPT + 3):
        record_run(ONE, 20.0 + number, 60.0)
    kept = json.loads(file.read_text())
    assert len(kept) == run_times._KEPT and kept[-1]["predicted"] == 20.0 + run_times._KEPT + 2


@pytest.mark.parametrize(
    "text",
    ["{", "[]]", '[{"device": "x"}]', '[{"device":"x","cores":1,"workers":1,"engine":"e","predicted":0,"measured":1}]'],
)
def test_a_corrupted_file_is_ignored_with_a_note_and_replaced(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    found, (note,) = read_calibration(ONE)
    assert found == calibrate([])
    assert "recorded run times are not used" in note and str(file) in note and "remove this file" in note
    record_run(ONE, 20.0, 60.0)
    assert read_calibration(ONE)[0].runs == 1


def test_a_cache_that_cannot_be_written_stops_no_run(file: Path) -> None:
    file.parent.write_text("a file in place of the folder")
    record_run(ONE, 20.0, 60.0)


def test_the_time_left_starts_with_the_estimate_and_ends_with_the_measurement() -> None:
    assert seconds_left(2.0, 0, 100, 0.0) == pytest.approx(200.0)
    paces = [seconds_left(2.0, done, 100, 6.0 * done) / (100 - done) for done in range(0, 100, 9)]
    assert paces == sorted(paces) and 2.0 == paces[0] < paces[-1] < 6.0
    assert seconds_left(0.0, 10, 100, 30.0) == pytest.approx(270.0)
    assert seconds_left(2.0, 100, 100, 200.0) == 0


def test_a_run_is_recorded_and_its_estimate_is_near(
    file: Path, tmp_path: Path, make_card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_times, "LEAST_SECONDS", 0.0)
    request = Request(
        models=("agft",), attacks=("apgd-ce",), datasets=("shapes", "textures"), samples=4, resources=ONE, out=tmp_path
    )
    plan = resolve(request)
    estimate = estimate_cost(plan)
    first: list[Progress] = []
    result = run_plan(plan, estimate, on_progress=first.append)
    assert first[0].seconds_left == pytest.approx(estimate.seconds_expected)
    assert 0 < result.passes <= estimate.passes_most
    (run,) = json.loads(file.read_text())
    assert run["measured"] <= result.seconds and run["workers"] == 1
    again = estimate_cost(plan)
    assert again.recorded_runs == 1 and again.time_ratio != estimate.time_ratio
    # No sample is computed, so nothing is recorded.
    run_plan(plan, again)
    assert len(json.loads(file.read_text())) == 1


def test_a_short_attack_predicts_the_passes_of_recorded_runs(file: Path, tmp_path: Path) -> None:
    datasets = ("shapes", "textures", "counting")
    plan = resolve(Request(models=("agft",), attacks=("autoattack",), datasets=datasets, out=tmp_path))
    estimate = estimate_cost(plan)
    folder = board_folder("mini")
    recorded = 0
    for each in read_entry_records(read_entry(folder / "agft.json"), folder):
        if (each.score.attack, each.score.eps, each.score.dataset in datasets) == ("autoattack", "5/255", True):
            recorded += sum(row.forward + row.backward for row in each.results[:8])
    low, high = estimate.passes_range
    assert low <= recorded <= high <= estimate.passes_most and low <= estimate.passes_expected <= high
    # Without the short attack, the assumed share of robust samples would be 0.35.
    assert abs(estimate.cells[0].robust_expected - 0.35) > 0.05
    low_seconds, high_seconds = estimate.seconds_range
    assert low_seconds < estimate.seconds_expected < high_seconds


def test_the_estimate_of_an_estimated_run_grows_with_its_precision(file: Path, tmp_path: Path) -> None:
    costs = []
    plan = resolve(Request(models=("clip",), datasets=("shapes", "textures"), out=tmp_path, samples=50))
    full = estimate_cost(plan)
    for half_width in (0.1, 0.05, 0.0001):
        costs.append(estimated_cost(replace(plan, request=replace(plan.request, half_width=half_width)), full))
        low, high = costs[-1].seconds_range
        assert low < costs[-1].seconds < high
        assert costs[-1].passes_range[0] <= costs[-1].passes <= costs[-1].passes_range[1]
        if half_width == 0.0001:
            # All survivors are attacked.
            assert costs[-1].passes == pytest.approx(full.passes_expected, rel=0.02)
    assert costs[0].passes <= costs[1].passes <= costs[2].passes and costs[0].first_seconds > 0
