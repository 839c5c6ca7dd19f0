"""Test adversarial images: they belong to the records of a run, in any number of processes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustbench_vlm.analysis.adversarial_images import attack_cells, attack_positions
from robustbench_vlm.analysis.inspect_sample import Predicted, inspect_sample
from robustbench_vlm.analysis.verdict import verdict_logits
from robustbench_vlm.attacks.projections import distance
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.cli.show_sample import figure as sample_figure
from robustbench_vlm.core.files import save_figure
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run_plan
from robustbench_vlm.engine.shard import Attacked, load_batch
from robustbench_vlm.engine.store import cell_folder, read_finished

RADIUS = "3/255"


def plan_of(folder: Path) -> Plan:
    return resolve(
        Request(
            models=("tecoa",),
            attacks=("pgd-5",),
            datasets=("colours", "day-night", "shapes"),
            eps=(RADIUS,),
            samples=10,
            out=folder,
            resources=Resources(device="cpu", workers=1),
        )
    )


def records_of(cell: Cell, folder: Path) -> list[SampleResult]:
    return [result for piece in read_finished(cell_folder(folder, cell), cell).pieces for result in piece.results]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Attacked]]:
    plan = plan_of(tmp_path_factory.mktemp("runs"))
    run_plan(plan)
    return plan, attack_cells(plan, lambda count, cell: None)


def test_attack_cells_returns_the_records_of_a_run(planned: tuple[Plan, list[Attacked]]) -> None:
    plan, attacked = planned
    for cell, each in zip(plan.cells, attacked, strict=True):
        assert list(each.results) == records_of(cell, plan.request.out)
    verdicts = {result.broken_by for each in attacked for result in each.results}
    assert verdicts == {"", CLEAN, "pgd-5"}


def test_the_images_have_the_predictions_and_distances_of_the_records(planned: tuple[Plan, list[Attacked]]) -> None:
    plan, attacked = planned
    moved = 0
    for cell, each in zip(plan.cells, attacked, strict=True):
        batch, _ = load_batch(cell, 0, len(cell), device="cpu")
        predictions = verdict_logits(cell, batch.keys, each.images, device="cpu").argmax(dim=1)
        for result, prediction in zip(each.results, predictions.tolist(), strict=True):
            assert prediction == (result.label if result.broken_by == "" else result.adversarial_prediction)
        sizes = distance(cell.threat, batch.images, each.images)
        assert float(sizes.max()) <= float(cell.threat.eps) + 1e-7
        assert float(each.images.min()) >= 0 and float(each.images.max()) <= 1
        for result, size in zip(each.results, sizes.tolist(), strict=True):
            assert result.broken_by == "" or size == result.distance
            moved += result.broken_by == "" and size > 0
    assert moved > 0


def test_several_processes_give_the_same_images(planned: tuple[Plan, list[Attacked]]) -> None:
    counts: list[int] = []
    plan = planned[0]
    resources = replace(plan.request.resources, workers=2)
    plan = replace(plan, request=replace(plan.request, resources=resources))
    again = attack_cells(plan, lambda count, cell: counts.append(count))
    assert sum(counts) == plan.samples and len(counts) > 1
    for one, other in zip(planned[1], again, strict=True):
        # With two processes, other samples are in the same pass, which may be rounded differently.
        assert [result.broken_by for result in one.results] == [result.broken_by for result in other.results]
        assert torch.allclose(one.images, other.images, atol=0.02)


def test_attack_positions_attacks_the_samples_at_these_positions(planned: tuple[Plan, list[Attacked]]) -> None:
    plan, attacked = planned
    found = attack_positions(plan.cells[0], [7, 2], plan.request.resources)
    whole = attacked[0]
    assert found.images.shape == (2, 3, 32, 32)
    for result, position in zip(found.results, (7, 2), strict=True):
        expected = whole.results[position]
        assert (result.sample_id, result.broken_by) == (expected.sample_id, expected.broken_by)
        assert result.margin == pytest.approx(expected.margin, abs=1e-5)


def test_a_shown_sample_agrees_with_the_record(
    planned: tuple[Plan, list[Attacked]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, attacked = planned
    cell, record = plan.cells[2], attacked[2].results[3]
    options = ["--eps", RADIUS, "--samples", "10", "--device", "cpu", "--out", str(tmp_path / "sample.png")]
    given = ["--model", "tecoa", "--attack", "pgd-5", *options]
    assert run_command(["show", "sample", "shapes", record.sample_id, *given, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    assert (shown["sample_id"], shown["position"]) == (record.sample_id, 3)
    assert shown["label"] == cell.dataset.classes[record.label]
    assert shown["magnification"] == pytest.approx(0.5 / (3 / 255), rel=1e-3) or record.broken_by == CLEAN
    (found,) = shown["models"]
    assert found["record"]["broken_by"] == record.broken_by
    assert found["record"]["margin"] == pytest.approx(record.margin, abs=1e-5)
    assert found["clean"][0]["name"] == cell.dataset.classes[record.clean_prediction]
    assert len(found["clean"]) == len(found["adversarial"]) == 5
    predicted = record.label if record.broken_by == "" else record.adversarial_prediction
    assert found["adversarial"][0]["name"] == cell.dataset.classes[predicted]
    assert sum(each["probability"] for each in found["clean"]) <= 1 + 1e-9
    # The sample is chosen by its position and printed as text in a narrow terminal.
    monkeypatch.setenv("COLUMNS", "40")
    assert run_command(["show", "sample", "shapes", "3", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 or str(tmp_path) in line for line in lines)
    assert any(line.startswith(f"{shown['label']} (right)") for line in lines)


def test_class_names_are_plain_text_in_the_figure(planned: tuple[Plan, list[Attacked]], tmp_path: Path) -> None:
    found = inspect_sample(replace(planned[0].request, datasets=("colours",)), "0")
    (own,) = found.models
    hostile = ("$x_{", "a $\\frac$ b", "\x1b[31m[bold]", "犬" * 40, "<b>&")
    names = dict(zip((each.name for each in own.clean), hostile, strict=False))

    def renamed(predicted: Sequence[Predicted]) -> tuple[Predicted, ...]:
        return tuple(replace(each, name=names.get(each.name, each.name)) for each in predicted)

    changed = replace(own, model="$\\no{$", clean=renamed(own.clean), adversarial=renamed(own.adversarial))
    figure = sample_figure(replace(found, label=hostile[0], models=(changed,)))
    for suffix in ("png", "svg"):
        save_figure(figure, tmp_path / f"hostile.{suffix}")
    drawn = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "✓ $x_{" in drawn and "a $\\frac$ b" in drawn and "\\x1b[31m[bold]" in drawn and "<b>&" in drawn
    assert not any("犬" * 20 in text for text in drawn)
