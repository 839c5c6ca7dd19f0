"""Test whole runs on a small trained model: results, resuming, damaged records, and independence of the batch."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.comparison.align import ModelRecords
from robustbench_vlm.comparison.compare import compare
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import Progress
from robustbench_vlm.core.records import SampleResult, wilson
from robustbench_vlm.engine import compute
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.cell_records import read_run
from robustbench_vlm.engine.manifest import ManifestRow, Provenance, write_manifest
from robustbench_vlm.engine.model_cache import classifier_of
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import score
from robustbench_vlm.engine.run import run, run_plan
from robustbench_vlm.engine.shard import attack_shards, load_batch
from robustbench_vlm.engine.store import cell_folder, read_finished
from robustbench_vlm.protocols.mini import MINI_QUICK
from robustbench_vlm.tracks import MINI

ONE = Resources(device="cpu", workers=1)


@pytest.fixture
def request_of(taught_card: Path, tmp_path: Path) -> Callable[..., Request]:
    def make(**changes: object) -> Request:
        request = Request(
            models=(str(taught_card),),
            attacks=("pgd-10",),
            datasets=("colours", "day-night"),
            eps=("1/255",),
            out=tmp_path / "runs",
            resources=ONE,
        )
        return replace(request, **changes)

    return make


def table_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_writes_records_scores_and_a_manifest(request_of: Callable[..., Request]) -> None:
    seen: list[Progress] = []
    result = run(request_of(command="vlmbench run"), on_progress=seen.append)
    (table,) = result.tables
    assert [score.dataset for score in table.scores] == ["colours", "day-night"]
    assert table.mean is not None
    low, high = table.mean.robust_interval
    assert 0 <= low <= table.mean.robust <= high <= 1 and low < high
    assert table.mean.robust == pytest.approx(sum(score.robust for score in table.scores) / 2)
    assert [progress.done for progress in seen] == [0, 2 * MINI_QUICK.samples]
    assert seen[-1].seconds_left == 0 and seen[-1].passes == result.passes > 0
    manifest = json.loads((table.folder / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["command"] == "vlmbench run"
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = table_of(table.folder / "scores.csv")
    assert [float(row["robust"]) for row in rows] == [score.robust for score in table.scores]
    assert {row["fingerprint"] for row in rows} == {cell["fingerprint"] for cell in manifest["cells"].values()}


def test_a_dataset_with_too_few_samples_is_reported(request_of: Callable[..., Request]) -> None:
    # The dataset has 1000 samples.
    result = run(request_of(datasets=("day-night",), samples=1001, attacks=("fgsm",)))
    assert result.warnings == ("day-night has only 1000 samples, 1001 were asked for",)
    assert run(request_of(datasets=("day-night",), samples=8, attacks=("fgsm",))).warnings == ()


def test_scores_csv_has_no_formula_and_no_control_character(request_of: Callable[..., Request], tmp_path: Path) -> None:
    table, cell = run(request_of()).tables[0], resolve(request_of()).cells[0]
    named = replace(table.scores[0], dataset="=1+1", model="\t@SUM(1)\x1b[31m")
    made = Provenance("complete", "", ONE, 0.0, 0)
    write_manifest(tmp_path / "hostile", [ManifestRow(cell, "cell", named)], made)
    (row,) = table_of(tmp_path / "hostile" / "scores.csv")
    assert (row["dataset"], row["model"]) == ("'=1+1", r"'\t@SUM(1)\x1b[31m")


def test_the_json_document_of_one_table_and_of_several(request_of: Callable[..., Request]) -> None:
    one = run(request_of()).to_json()
    assert {"track", "protocol", "model", "attack", "fingerprint", "scores", "mean", "seconds"} <= set(one)
    expected = {"dataset", "classes", "eps", "n", "clean", "robust", "clean_interval", "robust_interval", "warnings"}
    assert set(one["scores"][0]) == expected
    json.dumps(one)
    several = run(request_of(attacks=("pgd-10", "fgsm"))).to_json()
    assert [each["attack"] for each in several["runs"]] == ["pgd-10", "fgsm"]
    assert several["runs"][0]["scores"] == one["scores"]


def test_records_on_disk_are_not_computed_again(
    request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(request_of())

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(compute, "run_group", refuse)
    again = run(request_of(resources=replace(ONE, batch_size=5, shard_size=3)))
    assert again.tables[0].scores == first.tables[0].scores
    assert again.tables[0].seconds == 0 and again.passes == first.passes
    with pytest.raises(AssertionError, match="computed again"):
        run(request_of(eps=("2/255",)))


def test_damaged_records_raise_a_warning_and_are_computed_again(request_of: Callable[..., Request]) -> None:
    first = run(request_of())
    path = sorted(first.tables[0].folder.rglob("*.parquet"))[0]
    before = path.read_bytes()
    path.write_bytes(before[:-30])
    again = run(request_of())
    assert len(again.warnings) == 1 and str(path) in again.warnings[0] and "damaged" in again.warnings[0]
    assert path.read_bytes() == before
    assert again.tables[0].scores == first.tables[0].scores


def test_a_run_keeps_the_cells_of_earlier_commands_in_the_folder(request_of: Callable[..., Request]) -> None:
    run(request_of(eps=("1/255",)))
    (table,) = run(request_of(eps=("2/255",), datasets=("colours",))).tables
    rows = table_of(table.folder / "scores.csv")
    assert sorted((row["dataset"], row["eps"]) for row in rows) == [
        ("colours", "1/255"),
        ("colours", "2/255"),
        ("day-night", "1/255"),
    ]
    assert not run(request_of()).warnings
    (table.folder / "manifest.json").write_text("damaged")
    result = run(request_of())
    assert len(result.tables[0].scores) == 2
    (warning,) = result.warnings
    assert "manifest.json was damaged and is written again, without cells of other commands" in warning


@pytest.mark.parametrize("prompt", ["a photo of a {}.", "=a {}", "a sketch of a {}, small."])
def test_rows_of_scores_csv_differ_in_folder_or_prompt(
    request_of: Callable[..., Request], tmp_path: Path, prompt: str
) -> None:
    for parent, colour in (("one", "red"), ("two", "blue")):
        for label in ("day", "night"):
            folder = tmp_path / parent / "mine" / label
            folder.mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (32, 32), colour).save(folder / f"{n}.png")
    images = [
        (tmp_path / "one" / "mine", prompt),
        (tmp_path / "two" / "mine", prompt),
        (tmp_path / "two" / "mine", "{}"),
    ]
    for folder, template in images:
        (table,) = run(request_of(datasets=(), images=folder, prompt=template, attacks=("fgsm",))).tables
    rows = table_of(table.folder / "scores.csv")
    assert {(row["images"], row["prompt"].removeprefix("'")) for row in rows} == {(str(p), text) for p, text in images}
    assert [row["dataset"] for row in rows] == ["mine"] * 3
    (datasets,) = run(request_of(attacks=("fgsm",), datasets=("colours",))).tables
    (row,) = [row for row in table_of(datasets.folder / "scores.csv") if row["dataset"] == "colours"]
    assert row["images"] == "" and "{}" in row["prompt"]
    found = compare([ModelRecords("taught", read_run(table.folder))], MINI, attack="fgsm", eps=Fraction(1, 255))
    assert any("several versions of mine" in note for note in found.notes)


def interrupted_after(samples: int) -> Callable[[Progress], None]:
    """Return a progress callback that raises KeyboardInterrupt when more than `samples` samples are done."""

    def interrupt(progress: Progress) -> None:
        if progress.done > samples:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("after", range(-1, 16, 4))
@pytest.mark.parametrize("attacks", [("pgd-10",), ("pgd-10", "fgsm")])
def test_an_interrupted_run_keeps_the_scores_of_all_cells_with_complete_records(
    request_of: Callable[..., Request], tmp_path: Path, attacks: tuple[str, ...], after: int
) -> None:
    small = {"samples": 8, "datasets": ("colours",)}
    large = {"samples": 8, "datasets": ("colours", "textures", "day-night"), "attacks": attacks}
    resources = replace(ONE, batch_size=2, shard_size=2)
    expected = run(request_of(**large, out=tmp_path / "uninterrupted"))
    run(request_of(**small, resources=resources))
    request = request_of(**large, resources=resources)
    with pytest.raises(KeyboardInterrupt):
        run(request, on_progress=interrupted_after(8 + after))
    scores = {(s.attack, s.dataset): (s.clean, s.robust) for table in expected.tables for s in table.scores}
    complete = {
        (cell.attack.name, cell.dataset.name)
        for cell in resolve(request).cells
        if len(read_finished(cell_folder(request.out, cell), cell).pieces) == 4
    }
    assert ("pgd-10", "colours") in complete and complete <= scores.keys()
    found = read_run(request.out / "mini" / "taught")
    assert {(each.score.attack, each.score.dataset): (each.score.clean, each.score.robust) for each in found} == {
        name: scores[name] for name in complete
    }
    assert {row["dataset"] for row in table_of(request.out / "mini" / "taught" / "pgd-10" / "scores.csv")} == {
        dataset for attack, dataset in complete if attack == "pgd-10"
    }
    assert run(request).fingerprint == expected.fingerprint


def test_the_number_of_workers_changes_no_verdict(request_of: Callable[..., Request], tmp_path: Path) -> None:
    one = run(request_of())
    two = run(request_of(out=tmp_path / "two", resources=Resources(device="cpu", workers=2, shard_size=8)))
    strip = [replace(score, warnings=()) for score in one.tables[0].scores]
    assert [replace(score, warnings=()) for score in two.tables[0].scores] == strip
    assert two.fingerprint == one.fingerprint


def test_the_shard_size_changes_no_verdict(request_of: Callable[..., Request]) -> None:
    plan = resolve(request_of(attacks=("pgd-20",), datasets=("colours",), eps=("1/510",)))
    (cell,) = plan.cells
    exact = classifier_of(cell.model, cell.track, cell.dataset.prompts, "cpu")
    verdicts = []
    for size in (1, 7, 64):
        found: list[str] = []
        for start in range(0, len(cell), size):
            batch, _ = load_batch(cell, start, start + size, device="cpu")
            batch = replace(batch, images=batch.images.double())
            found += attack_samples(exact.double(), batch, cell.attack, batch_size=3).broken_by
        verdicts.append(found)
    exact.float()
    assert verdicts[0] == verdicts[1] == verdicts[2]
    assert len(set(verdicts[0])) > 1


def test_records_are_bitwise_equal_for_any_set_of_samples_attacked_together(tmp_path: Path) -> None:
    names, samples = ("day-night", "shapes", "fine-grained"), 5
    request = Request(
        models=("clip",), attacks=("pgd-20",), datasets=names, samples=samples, out=tmp_path, resources=ONE
    )
    plan = resolve(request)

    def records(*shards: Shard) -> dict[tuple[int, int], SampleResult]:
        found = [each.results for each in attack_shards(plan.cells, plan.request.resources, shards)]
        return {
            (shard.cell, shard.start + place): result
            for shard, results in zip(shards, found, strict=True)
            for place, result in enumerate(results)
        }

    def shard(cell: int, start: int, stop: int) -> Shard:
        return Shard(cell, start, stop, plan.cells[cell].fingerprint)

    everything = range(len(names))
    whole = [records(shard(cell, 0, samples)) for cell in everything]
    mixed = records(*(shard(cell, 0, samples) for cell in everything))
    alone = [records(shard(cell, place, place + 1)) for cell in everything for place in range(samples)]
    assert {key: result for each in whole for key, result in each.items()} == mixed
    assert {key: result for each in alone for key, result in each.items()} == mixed
    assert len({result.broken_by for result in mixed.values()}) > 1


def shard_of(cell: Cell) -> Shard:
    return Shard(0, 0, len(cell), cell.fingerprint)


def test_a_worker_raises_user_error_for_another_identity(request_of: Callable[..., Request]) -> None:
    (cell,) = resolve(request_of(datasets=("colours",))).cells
    with pytest.raises(UserError, match=r"weights .* have changed"):
        attack_shards([replace(cell, weights="0" * 64)], ONE, [shard_of(cell)])
    with pytest.raises(UserError, match="a different fingerprint"):
        attack_shards([replace(cell, protocol=replace(cell.protocol, seed=1))], ONE, [shard_of(cell)])
    digests = ("0" * 64, *cell.samples.image_digests[1:])
    changed = replace(cell, samples=replace(cell.samples, image_digests=digests))
    with pytest.raises(UserError, match="has changed since the start of the run"):
        attack_shards([changed], ONE, [shard_of(changed)])


def test_a_second_run_in_the_same_folder_raises_user_error(request_of: Callable[..., Request]) -> None:
    plan: Plan = resolve(request_of())
    other: list[str] = []

    def start_another(progress: Progress) -> None:
        with pytest.raises(UserError, match="another run is writing to"):
            run_plan(plan)
        other.append("refused")

    run_plan(plan, on_progress=start_another)
    assert len(other) == 2


@settings(deadline=None)
@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_the_wilson_interval_contains_the_share_and_equals_the_textbook_formula(n: int, share: float) -> None:
    successes = round(n * share)
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    # The textbook formula of the Wilson interval, with the normal quantile for 95 %.
    z, p = 1.959963984540054, successes / n
    centre, half = (p + z * z / (2 * n)), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert low == pytest.approx(max(0.0, (centre - half) / (1 + z * z / n)), abs=1e-9)
    assert high == pytest.approx(min(1.0, (centre + half) / (1 + z * z / n)), abs=1e-9)


def test_scores_count_correct_and_unbroken_samples(
    make_cell: Callable[..., Cell], make_results: Callable[..., list[SampleResult]]
) -> None:
    cell = make_cell(10)
    found = score(cell, make_results(cell, ["clean"] * 2 + ["first"] * 3 + [""] * 5))
    assert (found.n, found.clean, found.robust) == (10, 0.8, 0.5)
