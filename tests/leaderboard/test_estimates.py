"""Estimated numbers in entries: made from a run, recomputed from the records, and refused if they were changed."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_up_results import estimated, evidence, unfinished, write_board_entry

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.square import square_stage
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.records import Verdict
from robustbench_vlm.engine import estimate, estimated_run, resolve
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.engine.estimate import CellDraws, estimate_mean
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run
from robustbench_vlm.leaderboard import definitions
from robustbench_vlm.leaderboard.entry import Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, read_entry_records, write_records
from robustbench_vlm.leaderboard.estimates import draws_of
from robustbench_vlm.leaderboard.validate import check_continuation, check_entry

FULL = {
    "shapes": ["clean"] * 3 + ["apgd-ce"] * 9 + ["square", "", "", "square"] + [""] * 24,
    "digits": ["apgd-ce"] * 20 + [""] * 12 + ["square"] + [""] * 7,
    "colours": ["apgd-ce"] * 40,
}
"""The outcome of the full attack. 48 samples survive the first phase, and the second phase breaks 3 of them."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_board_entry(estimated("a", FULL, 20), tmp_path)


def rewritten(path: Path, cells: Sequence[CellRecords]) -> Entry:
    """Write an entry whose digests and estimates follow from other records."""
    earlier = read_entry(path)
    entry, content = make_entry(cells, earlier.card, (), earlier.protocol.identity)
    entry = entry.after("2026-01-02", "submission", "submitted again")
    write_records(content, path.parent / entry.records.file)
    write_entry(entry, path)
    return read_entry(path)


def test_an_entry_states_the_estimate_of_each_dataset_and_of_the_mean(path: Path) -> None:
    entry = read_entry(path)
    found = check_entry(entry, path.parent)
    draws = [draws_of(each) for each in found]
    # The dataset on which no sample survives the first phase is finished.
    assert [(each.samples, each.survivors) for each in draws] == [(40, 28), (40, 20), (40, 0)]
    assert sum(each.drawn for each in draws) == 20 and draws[2] == CellDraws.of_complete(found[2].results)
    assert [cell.estimate is None for cell in entry.cells] == [False, False, True]
    (mean,) = entry.estimates
    expected = estimate_mean(draws)
    assert (mean.robust, *mean.robust_interval) == pytest.approx((expected.value, *expected.new_samples))
    assert mean.estimate.full_attack == pytest.approx(expected.full_attack)
    assert (mean.estimate.survivors, mean.estimate.drawn) == (48, 20)
    assert mean.estimate.broken == sum(each.broken for each in draws)
    # 28 survivors were not drawn. Each of them would have 10 passes in the full attack, and has 3 in the first phase.
    assert mean.estimate.passes == 92 * 10 + 28 * 3 and mean.estimate.passes_full == 120 * 10


def test_each_sample_has_its_stages_and_one_of_three_verdicts(path: Path) -> None:
    shapes = read_entry_records(read_entry(path), path.parent)[0]
    stages = dict(zip([each.sample_id for each in shapes.results], shapes.stages, strict=True))
    assert (stages["0000"], stages["0003"]) == ("", "apgd-ce")
    for result, drawn in zip(shapes.results, shapes.drawn, strict=True):
        if result.verdict is Verdict.UNFINISHED:
            assert not drawn and stages[result.sample_id] == "apgd-ce"
        if result.verdict is Verdict.ROBUST:
            assert drawn and stages[result.sample_id] == "apgd-ce,square"
    assert {each.verdict for each in shapes.results} == set(Verdict)
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(shapes.results[0].verdict)


@pytest.mark.parametrize(
    "change",
    [
        lambda mean: dataclasses.replace(mean, robust=mean.robust + 0.01),
        lambda mean: dataclasses.replace(mean, robust_interval=(mean.robust, mean.robust_interval[1])),
        *(
            lambda mean, name=name, value=value: dataclasses.replace(
                mean, estimate=dataclasses.replace(mean.estimate, **{name: value})
            )
            for name, value in {
                "survivors": 47,
                "drawn": 21,
                "broken": 0,
                "passes": 1,
                "passes_full": 10**6,
                "full_attack": (0.3, 0.4),
            }.items()
        ),
    ],
)
def test_a_changed_estimate_is_refused(change: Callable[..., object], path: Path) -> None:
    entry = read_entry(path)
    with pytest.raises(Unsound, match="the estimated means of 'a' do not follow from the records"):
        check_entry(dataclasses.replace(entry, estimates=(change(entry.estimates[0]),)), path.parent)
    cell = entry.cells[0]
    assert cell.estimate is not None
    shown = dataclasses.replace(
        entry.estimates[0], robust=cell.score.robust, robust_interval=cell.score.robust_interval, estimate=cell.estimate
    )
    changed = change(shown)
    score = dataclasses.replace(cell.score, robust=changed.robust, robust_interval=changed.robust_interval)  # type: ignore[attr-defined]
    forged = dataclasses.replace(cell, score=score, estimate=changed.estimate)  # type: ignore[attr-defined]
    with pytest.raises(Unsound, match="'a' / autoattack / shapes / 1/51: the estimate does not follow"):
        check_entry(dataclasses.replace(entry, cells=(forged, *entry.cells[1:])), path.parent)


def test_an_estimate_must_be_stated_where_a_cell_is_unfinished_and_only_there(path: Path) -> None:
    entry = read_entry(path)
    with pytest.raises(Unsound, match="the estimated means"):
        check_entry(dataclasses.replace(entry, estimates=()), path.parent)
    for number, other in ((0, None), (2, entry.cells[0].estimate)):
        cells = list(entry.cells)
        cells[number] = dataclasses.replace(cells[number], estimate=other)
        with pytest.raises(Unsound, match="the estimate does not follow"):
            check_entry(dataclasses.replace(entry, cells=tuple(cells)), path.parent)


def test_an_author_cannot_choose_the_samples_that_are_attacked_in_full(path: Path) -> None:
    # The records, digests and estimates agree with each other, but other survivors were drawn: none that breaks.
    easy = [(0, f"{n:04d}") for n in range(16, 40)]
    with pytest.raises(Unsound, match=r"was attacked in full, but 20 were drawn .* not one of the first 20 survivors"):
        check_entry(rewritten(path, estimated("a", FULL, 20, order=easy)), path.parent)


def test_a_sample_that_is_not_finished_cannot_be_declared_robust(path: Path) -> None:
    cells = list(read_entry_records(read_entry(path), path.parent))
    shapes = cells[0]
    open_ = next(n for n, each in enumerate(shapes.results) if each.verdict is Verdict.UNFINISHED)
    results = list(shapes.results)
    results[open_] = dataclasses.replace(results[open_], broken_by="")
    cells[0] = dataclasses.replace(shapes, results=tuple(results))
    with pytest.raises(Unsound, match="has the verdict 'robust' after the stages 'apgd-ce', expected 'apgd-ce,square'"):
        check_entry(rewritten(path, cells), path.parent)
    with pytest.raises(Unsound, match="is not finished, but its cell is not an estimate"):
        evidence("a", (), results=[unfinished(shapes.results[-1])])
    assert shapes.score.robust != sum(each.broken_by == "" for each in shapes.results) / 40


def test_an_estimate_replaces_neither_a_full_number_nor_one_with_more_draws(path: Path, tmp_path: Path) -> None:
    earlier = read_entry(path)
    fewer, more = (rewritten(path, estimated("a", FULL, drawn)) for drawn in (10, 30))
    full = rewritten(path, estimated("a", FULL, 48))
    assert not full.estimates

    def submit(entry: Entry, before: Entry) -> None:
        check_continuation(dataclasses.replace(entry, history=before.history), before, tmp_path)

    submit(more, earlier)
    submit(full, earlier)
    for entry, before in ((fewer, earlier), (earlier, full)):
        with pytest.raises(Unsound, match="is an estimate, but the earlier entry has a full number or an"):
            submit(entry, before)


# A real run


@pytest.fixture
def quick_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace AutoAttack by an attack with the same kinds of stages and few steps, and draw 7 survivors at a time."""
    stages = (
        apgd_stage("apgd-ce", loss="ce", steps=2, targets=0, restarts=1),
        apgd_stage("apgd-t", loss="targeted-dlr", steps=3, targets=4, restarts=1),
        square_stage("square", queries=3, p_init=0.8),
    )
    for module in (resolve, definitions):
        monkeypatch.setattr(module, "load_attack", lambda name: Attack(name, stages, "a quick attack"))
    monkeypatch.setattr(estimated_run, "chunks", lambda cells, samples: estimate.chunks(cells, samples, 7))


@pytest.fixture
def request_of(taught_card: Path, tmp_path: Path, quick_attack: None) -> Request:
    return Request(
        models=(str(taught_card),),
        attacks=("autoattack",),
        datasets=("colours", "digits"),
        protocol="mini",
        eps=("2/255",),
        half_width=0.08,
        out=tmp_path / "runs",
        resources=Resources("cpu", workers=1),
    )


def test_an_estimated_run_becomes_an_entry(
    request_of: Request, taught_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(request_of).tables[0]
    folder, boards = tmp_path / "runs" / "mini" / "taught", tmp_path / "boards"
    command = ["submit", str(folder), "--model", str(taught_card), "--out", str(boards), "--json"]
    assert run_command(command) == 0
    text = json.loads(capsys.readouterr().out)["pull_request"]
    entry = read_entry(boards / "mini" / "taught.json")
    (mean,) = entry.estimates
    assert table.estimate is not None and table.mean is not None
    assert (mean.robust, mean.robust_interval) == (table.mean.robust, table.mean.robust_interval)
    assert mean.estimate.full_attack == table.estimate.mean
    assert [cell.score for cell in entry.cells] == [
        dataclasses.replace(cell.score, robust=score.robust, robust_interval=score.robust_interval)
        for cell, score in zip(entry.cells, table.scores, strict=True)
    ]
    counts = "survivors", "drawn", "broken", "passes_full"
    assert [getattr(mean.estimate, name) for name in counts] == [getattr(table.estimate, name) for name in counts]
    assert mean.estimate.passes == table.passes
    saved = f"{mean.estimate.drawn} of {mean.estimate.survivors} survivors attacked in full"
    assert saved in text and run_command(["verify", str(boards / "mini" / "taught.json"), "--check"]) == 0
    verify = ["verify", str(boards / "mini" / "taught.json"), "--model", str(taught_card), "--workers", "1"]
    assert run_command([*verify, "--samples", "2"]) == 0
    # A killed run may leave drawn survivors of one dataset only. They are not the first of the order.
    parts = sorted(folder.rglob("*.parquet"), key=lambda part: part.stat().st_mtime_ns)
    shutil.copytree(folder, tmp_path / "killed" / "taught")
    (tmp_path / "killed" / "taught" / parts[-1].relative_to(folder)).unlink()
    assert run_command([*command[:1], str(tmp_path / "killed" / "taught"), *command[2:4], "--out", str(tmp_path)]) == 0
    (killed,) = read_entry(tmp_path / "mini" / "taught.json").estimates
    assert killed.estimate.drawn < mean.estimate.drawn and killed.estimate.survivors == mean.estimate.survivors
