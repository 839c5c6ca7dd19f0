"""Test transfer attacks: the accuracies equal those computed again from the saved images."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_vlm import tracks
from robustbench_vlm.analysis.adversarial_images import AdversarialImages, read_images
from robustbench_vlm.analysis.transfer import Transfer, TransferAccuracies, TransferTarget, masked_gradients, transfer
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.progress import Progress
from robustbench_vlm.core.records import Accuracy, mean_interval
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import ScoreTable
from robustbench_vlm.engine.run import run
from robustbench_vlm.models.classifier import Model, load_model

MODELS = ("clip", "tecoa", "agft")
DATASETS_USED = ("colours", "shapes", "day-night")
UNSEEN = DATASETS_USED[:2]
EPS = 4 / 255
REQUEST = Request(
    models=MODELS,
    attacks=("pgd-5",),
    datasets=DATASETS_USED,
    eps=("4/255",),
    samples=12,
    resources=Resources(device="cpu", workers=1),
)
Found = tuple[Transfer, Path, list[Progress]]


@pytest.fixture(scope="module", autouse=True)
def trained_on_the_last() -> Iterator[None]:
    """Set the track's training datasets to one of the small datasets of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracks, "MINI", replace(tracks.MINI, training_datasets=DATASETS_USED[2:]))
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("images")
    reports: list[Progress] = []
    return transfer(REQUEST, folder, on_progress=reports.append), folder, reports


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScoreTable]:
    result = run(replace(REQUEST, out=tmp_path_factory.mktemp("runs")))
    return {table.model: table for table in result.tables}


def predictions(model: Model, images: AdversarialImages) -> list[bool]:
    """Return for each image whether a model classifies it correctly, without the code under test."""
    right = []
    for name in DATASETS_USED:
        dataset = DATASETS.load(name)
        source, classifier = dataset.open(), model.classifier(dataset.prompts)
        rows = [row for row, (other, _) in enumerate(images.samples) if other == name]
        with torch.no_grad():
            found = classifier(images.images[rows]).argmax(dim=1).tolist()
        labels = [source.labels[source.ids.index(images.samples[row][1])] for row in rows]
        right += [prediction == label for prediction, label in zip(found, labels, strict=True)]
    return right


def test_the_accuracies_of_a_model_on_its_own_images_are_those_of_a_run(
    found: Found, tables: dict[str, ScoreTable]
) -> None:
    for target in found[0].targets:
        mean = tables[target.model].mean
        assert mean is not None
        assert (target.mean.clean.value, target.mean.robust.value) == (mean.clean, mean.robust)
        robust = target.mean.robust
        assert target.mean.under[target.model] == robust and (robust.low, robust.high) == mean.robust_interval
        for score in tables[target.model].scores:
            accuracies = target.datasets[score.dataset]
            assert (accuracies.clean.value, accuracies.robust.value, accuracies.robust.n) == (
                score.clean,
                score.robust,
                score.n,
            )
    assert found[0].datasets == UNSEEN and found[0].n == 24


def test_the_accuracies_equal_those_computed_from_the_saved_images(found: Found) -> None:
    result, folder, _ = found
    seen: dict[tuple[str, str], list[bool]] = {}
    models = {name: load_model(name, "mini") for name in MODELS}
    for source in MODELS:
        images, _ = read_images(folder / f"{source}.safetensors")
        assert images.track == "mini" and len(images.samples) == 36
        seen |= {(source, target): predictions(models[target], images) for target in MODELS}
    for target in result.targets:
        for place, name in enumerate(DATASETS_USED):
            rows = {source: seen[source, target.model][12 * place : 12 * place + 12] for source in MODELS}
            accuracies = target.datasets[name]
            assert {source: share.value for source, share in accuracies.under.items()} == {
                source: sum(row) / 12 for source, row in rows.items()
            }
            assert accuracies.worst.value == sum(map(all, zip(*rows.values(), strict=True))) / 12
        for source, share in target.mean.under.items():
            values = [target.datasets[name].under[source].value for name in UNSEEN]
            assert share.value == pytest.approx(sum(values) / 2)
            assert (share.low, share.high) == pytest.approx(mean_interval(values, [12, 12]))
    # The test is meaningful only if the accuracies differ.
    values = [share.value for target in result.targets for share in target.mean.under.values()]
    assert len(set(values)) > 3


def test_the_saved_images_are_within_the_radius_and_not_rounded(found: Found) -> None:
    images, _ = read_images(found[1] / "clip.safetensors")
    moved = torch.zeros(36)
    for row, (name, sample) in enumerate(images.samples):
        source = DATASETS.load(name).open()
        clean = source.read([source.ids.index(sample)])[0].float() / 255
        moved[row] = (images.images[row] - clean).abs().max()
    assert images.images.dtype == torch.float32
    assert float(moved.max()) <= EPS + 1e-7 and int((moved > 0).sum()) > 20
    # At least one pixel value is not a multiple of 1/255.
    assert not torch.equal((images.images * 255).round() / 255, images.images)


def test_the_worst_accuracy_is_at_most_that_on_the_images_of_any_model(found: Found) -> None:
    for target in found[0].targets:
        assert target.mean.worst.value <= min(share.value for share in target.mean.under.values())
        assert target.missed >= 0
        held = round(24 * (target.mean.robust.value - target.mean.worst.value))
        assert target.missed == held


def test_progress_goes_from_zero_to_the_total(found: Found) -> None:
    done = [progress.done for progress in found[2]]
    total = 36 * 3 * 3
    assert done[0] == 0 and done == sorted(done) and done[-1] == total
    assert {progress.total for progress in found[2]} == {total}
    assert found[2][-1].seconds_left == 0


def target_of(robust: float, under: dict[str, float], missed: int) -> TransferTarget:
    share = {name: Accuracy(value, 0.0, 1.0, 100) for name, value in {"own": robust, **under}.items()}
    clean = Accuracy(0.9, 0.0, 1.0, 100)
    return TransferTarget("own", TransferAccuracies(clean, share["own"], share, share["own"]), {}, missed)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (target_of(0.5, {"a": 0.4, "b": 0.7}, 15), "images of a break more samples than pgd-20 on the model itself"),
        (target_of(0.5, {"a": 0.6}, 3), "break 3 of 100 samples that pgd-20 on the model itself does not break"),
        (target_of(0.5, {"a": 0.6}, 2), ""),
        (target_of(0.5, {"a": 0.5}, 0), ""),
    ],
)
def test_images_of_other_models_that_break_more_samples_raise_a_warning(target: TransferTarget, message: str) -> None:
    sentences = list(masked_gradients(target, "pgd-20"))
    assert len(sentences) == bool(message) and all(message in sentence for sentence in sentences)


GIVEN = [
    *("transfer", "--model", "clip", "--model", "tecoa", "--attack", "fgsm", "--samples", "4", "--device", "cpu"),
    *("--dataset", "colours", "--dataset", "shapes", "--workers", "1"),
]


def test_the_command_writes_plot_and_images_and_prints_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot, save = tmp_path / "matrix.svg", tmp_path / "saved"
    assert run_command([*GIVEN, "--plot", str(plot), "--save", str(save), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [target["model"] for target in document["targets"]] == ["clip", "tecoa"]
    assert document["attack"] == "fgsm" and document["n"] == 8 and document["norm"] == "Linf"
    assert plot.read_text().startswith("<?xml")
    assert sorted(path.name for path in save.iterdir()) == ["clip.safetensors", "tecoa.safetensors"]


@pytest.mark.parametrize("width", [40, 80])
def test_the_printed_lines_fit_the_width_of_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run_command(GIVEN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("images of" if width == 80 else "  images of") for line in lines)
    assert any("itself" in line for line in lines) == (width == 40)
