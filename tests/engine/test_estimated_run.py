"""Estimated runs: stopping, resuming, equal records for any number of workers, and completion to the full run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.square import square_stage
from robustbench_vlm.cli.options import points
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.engine import estimate, estimated_run, resolve, run_times
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import read_run
from robustbench_vlm.engine.estimated_cost import drawn_share
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.engine.run import run


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw three survivors at a time."""
    monkeypatch.setattr(estimated_run, "chunks", lambda cells, samples: estimate.chunks(cells, samples, 3))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.fixture(autouse=True)
def quick_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace AutoAttack by an attack with the same kinds of stages and few steps."""
    stages = (
        apgd_stage("apgd-ce", loss="ce", steps=2, targets=0, restarts=1),
        apgd_stage("apgd-t", loss="targeted-dlr", steps=6, targets=4, restarts=1),
        square_stage("square", queries=20, p_init=0.8),
    )
    monkeypatch.setattr(resolve, "load_attack", lambda name: Attack(name, stages, "a quick attack"))


@pytest.fixture
def evaluate(taught_card: Path, tmp_path: Path) -> Callable[..., RunResult]:
    def evaluate(
        out: str,
        half_width: float = 0.0,
        workers: int = 1,
        attacks: tuple[str, ...] = ("autoattack",),
        on_progress: OnProgress = ignore_progress,
    ) -> RunResult:
        return run(
            Request(
                models=(str(taught_card),),
                attacks=attacks,
                datasets=("colours", "digits"),
                eps=("2/255",),
                samples=24,
                half_width=half_width,
                out=tmp_path / out,
                resources=Resources(device="cpu", workers=workers, shard_size=8),
            ),
            on_progress=on_progress,
        )

    return evaluate


def test_progress_counts_each_step_of_an_estimated_run(evaluate: Callable[..., RunResult]) -> None:
    seen: list[Progress] = []
    evaluate("progress", half_width=0.12, on_progress=seen.append)
    steps = {step: [each for each in seen if each.step == step] for step in dict.fromkeys(each.step for each in seen)}
    assert list(steps) == ["step 1 of 2", "step 2 of 2"]
    for reports in steps.values():
        # Only the last report of a step says that all samples are done.
        assert [each.done == each.total for each in reports] == [False] * (len(reports) - 1) + [True]


def test_finishing_an_estimated_run_gives_the_files_of_a_full_run(
    evaluate: Callable[..., RunResult], tmp_path: Path
) -> None:
    full = evaluate("full")
    estimated = evaluate("estimated", half_width=0.12)
    (table,) = estimated.tables
    assert table.estimate is not None and 0 < table.estimate.drawn < table.estimate.survivors
    design = table.estimate.mean
    assert design is not None and full.tables[0].mean is not None
    assert design[0] <= full.tables[0].mean.robust <= design[1] and design[1] - design[0] <= 0.24
    assert estimated.passes < full.passes
    finished = evaluate("estimated")
    assert finished.tables[0].estimate is None
    assert files_of(tmp_path / "estimated") == files_of(tmp_path / "full")
    assert finished.passes == full.passes


def test_estimated_runs_and_their_continuations_are_recorded_for_later_plans(
    evaluate: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    passes, recorded = [], []
    monkeypatch.setattr("robustbench_vlm.engine.run.seconds_of", lambda cost, fresh: float(fresh))
    monkeypatch.setattr("robustbench_vlm.engine.run.record_run", lambda resources, *times: recorded.append(times))
    for half_width in (0.12, 0.0, 0.0):
        # Only a run with progress reports makes an estimate. Without one, nothing is recorded.
        passes.append(evaluate("run", half_width=half_width, on_progress=lambda progress: None).passes)
    # The time of a pass is 1 s here, and the estimate divides by the ratio of this machine.
    estimated, continued, nothing = (predicted * run_times.calibrate(()).ratio for predicted, _ in recorded)
    assert estimated == pytest.approx(passes[0]) and nothing == 0
    assert continued == pytest.approx(passes[1] - passes[0])
    assert recorded[0][1] > recorded[2][1] > 0 and recorded[1][1] > recorded[2][1]


def test_a_narrower_interval_continues_the_draws_and_workers_change_nothing(
    evaluate: Callable[..., RunResult], tmp_path: Path
) -> None:
    evaluate("steps", half_width=0.2)
    first = files_of(tmp_path / "steps")
    continued = evaluate("steps", half_width=0.1)
    at_once = evaluate("at_once", half_width=0.1, workers=2)
    assert len(first) < len(files_of(tmp_path / "steps"))
    assert files_of(tmp_path / "steps") == files_of(tmp_path / "at_once")
    assert continued.tables[0].estimate == at_once.tables[0].estimate
    # A wider interval is already reached, so nothing is attacked.
    wider = evaluate("steps", half_width=0.2)
    assert files_of(tmp_path / "steps") == files_of(tmp_path / "at_once")
    assert wider.tables[0].estimate is not None and continued.tables[0].estimate is not None
    assert wider.tables[0].estimate.drawn <= continued.tables[0].estimate.drawn


def test_other_views_do_not_show_an_estimated_run(evaluate: Callable[..., RunResult], tmp_path: Path) -> None:
    result = evaluate("views", half_width=0.2)
    with pytest.raises(UserError, match="no table of samples"):
        result.samples()
    with pytest.raises(UserError, match="does not contain a finished run"):
        read_run(result.tables[0].folder)
    assert not list((tmp_path / "views").rglob("scores.csv"))
    frame = result.to_pandas()
    assert frame["estimated"].all()
    ends = list(zip(frame["robust_full_attack_low"], frame["robust_full_attack_high"], strict=True))
    (table,) = result.tables
    assert table.estimate is not None and ends == list(table.estimate.scores)
    assert (frame["robust_full_attack_low"] <= frame["robust"]).all()
    assert (frame["robust"] <= frame["robust_full_attack_high"]).all()
    json = result.to_json()
    assert json["estimate"]["drawn"] < json["estimate"]["survivors"]


def test_a_full_run_with_other_attacks_finishes_the_estimate(
    evaluate: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("mixed", half_width=0.2)
    quick = resolve.load_attack
    stage = apgd_stage("apgd-ce", loss="ce", steps=2, targets=0, restarts=1)
    one_stage = Attack("one", (stage,), "an attack without phases")
    monkeypatch.setattr(resolve, "load_attack", lambda name: one_stage if name == "one" else quick(name))
    both = evaluate("mixed", attacks=("one", "autoattack"))
    assert [table.estimate for table in both.tables] == [None, None]
    assert [table.attack for table in both.tables] == ["one", "autoattack"]


def test_an_attack_with_one_stage_is_refused(
    evaluate: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = apgd_stage("apgd-ce", loss="ce", steps=2, targets=0, restarts=1)
    monkeypatch.setattr(resolve, "load_attack", lambda name: Attack(name, (stage,), "one stage"))
    with pytest.raises(UserError, match="only one stage"):
        evaluate("one", half_width=0.1)


def test_each_start_of_the_order_has_the_earliest_survivors(make_cell: Callable[..., Cell]) -> None:
    cells = [make_cell(40), make_cell(40, dataset=dataclasses.replace(make_cell(1).dataset, name="other"))]
    drawn = estimate.chunks(cells, [40, 40], 7)
    assert [sum(each.stop - each.start for each in chunk) for chunk in drawn] == [7] * 11 + [3]
    for number in (0, 1):
        ranges = [(each.start, each.stop) for chunk in drawn for each in chunk if each.cell == number]
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == 40
    # A cell with fewer samples has larger weights per sample, so its survivors are drawn earlier.
    weighted = estimate.chunks(cells, [40, 4000], 40)
    assert sum(each.stop - each.start for each in weighted[0] if each.cell == 0) >= 37


def test_an_estimate_takes_the_rate_of_all_draws_and_stays_inside_its_interval() -> None:
    cells = [
        estimate.CellDraws(samples=200, survivors=100, drawn=8, broken=1),
        estimate.CellDraws(samples=200, survivors=120, drawn=12, broken=0),
        estimate.CellDraws(samples=200, survivors=0, drawn=0, broken=0, robust=90),
    ]
    rates = estimate.broken_rates(cells)
    assert rates == {200: 1 / 20}
    whole = estimate.estimate_mean(cells)
    assert whole.value == pytest.approx(((100 + 120) * 0.95 + 90) / 600)
    assert whole.full_attack[0] <= whole.value <= whole.full_attack[1]
    assert whole.new_samples[0] < whole.full_attack[0] and whole.full_attack[1] < whole.new_samples[1]
    # The complete cell has no error of the draws, and the other cells are estimated with the common rate.
    single = [estimate.estimate_mean([cell], rates) for cell in cells]
    assert single[2].half_width == 0 and single[2].value == 90 / 200
    assert sum(each.value for each in single) / 3 == pytest.approx(whole.value)


def test_a_dataset_with_fewer_samples_is_a_stratum_of_its_own() -> None:
    cells = [
        estimate.CellDraws(samples=200, survivors=100, drawn=40, broken=2),
        estimate.CellDraws(samples=50, survivors=30, drawn=30, broken=3),
    ]
    assert estimate.broken_rates(cells) == {200: 1 / 20, 50: 1 / 10}
    found = estimate.estimate_mean(cells)
    # The second dataset is known exactly, and the first one has a weight of one half. A second stratum has a price.
    alone = estimate.estimate_mean(cells[:1]).half_width / 2
    assert alone <= found.half_width <= 1.5 * alone


@pytest.mark.parametrize("text", ["", "0", "-1", "50", "one", "nan", "inf"])
def test_a_half_width_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="percentage points above 0 and below 50"):
        points(text)


def test_a_plan_states_the_cost_of_an_estimated_run() -> None:
    one, many = drawn_share([200] * 13, 0.01), drawn_share([1000] * 15, 0.01)
    # Larger datasets need hardly more draws, so their share is much smaller.
    assert 0.05 < one < 0.5 and many < one / 2
    assert drawn_share([200] * 13, 0.005) > one
