"""The real track without its datasets and without a network: error messages, and runs on a user's images."""

import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from robustbench_vlm.analysis.contracts import check
from robustbench_vlm.analysis.doctor import doctor
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.published import class_names
from robustbench_vlm.datasets.published.local_copy import prepare_dataset
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.engine.cost import Speed
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.models import classifier as clip
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.tracks import ZEROSHOT15
from robustbench_vlm.training.pretrain import pretrain_base

TRACK = ("--track", "zeroshot15")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the hub unreachable and open_clip's downloads fail. Return the list of the models that it is asked for."""
    import open_clip

    asked: list[str] = []

    def fail(name: str, pretrained: str) -> object:
        asked.append(f"{name}/{pretrained}")
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", fail)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("robustbench_vlm.engine.missing.hub_cache_has_models", lambda: False)
    return asked


@pytest.fixture
def user_images(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "sea_lion")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for side in (20, 40):
            Image.new("RGB", (side, 30), (80 * number, 90, side)).save(tmp_path / "own" / name / f"{side}.png")
    return tmp_path / "own"


def _error(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run_command([*command, "--json"]) == 2
    message: str = json.loads(capsys.readouterr().out)["error"]
    return message


def test_norm_radii_and_base_are_those_of_the_papers() -> None:
    assert (ZEROSHOT15.base, ZEROSHOT15.norm) == ("clip", "Linf")
    assert ZEROSHOT15.eps == tuple(Fraction(eps, 255) for eps in (1, 2, 4))
    assert ZEROSHOT15.standard_eps == ZEROSHOT15.training_eps == Fraction(1, 255)
    # Each defense uses its published schedule and inner attack, on images that the user gives.
    assert ZEROSHOT15.schedule is None and not ZEROSHOT15.inner_attack and not ZEROSHOT15.learning_rates
    assert not ZEROSHOT15.training and not ZEROSHOT15.num_training_images


WRONG = dataclasses.replace(ZEROSHOT15, base="open_clip:ViT-B-33/openai")


def test_the_contracts_find_a_track_with_an_unknown_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "robustbench_vlm.analysis.contracts.TRACKS", Registry("track", {"wrong": "test_real_track:WRONG"})
    )
    (failed,) = [contract for contract in check("track", "wrong") if not contract.passed]
    assert "undefended model" in failed.name


@pytest.mark.parametrize("command", ["run", "plan"])
def test_missing_data_are_reported_before_a_model_is_downloaded(
    command: str,
    offline: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("VLMBENCH_DATA", str(tmp_path))
    message = _error(capsys, command, *TRACK)
    assert "15 of 15 datasets" in message and "caltech256, cifar10" in message and str(tmp_path) in message
    assert "vlmbench data prepare caltech101" in message
    assert not offline


def test_images_and_dataset_together_are_refused(
    user_images: Path, offline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "only one can be used: give --images or --dataset" in _error(
        capsys, "run", *TRACK, "--images", str(user_images), "--dataset", "handwritten"
    )
    assert not offline


def test_without_a_network_the_error_names_the_base(
    user_images: Path, offline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = _error(capsys, "run", *TRACK, "--images", str(user_images))
    assert "not in the cache: clip (open_clip:ViT-B-32-quickgelu/openai from the Hugging Face hub)" in message
    assert "Run `vlmbench data weights --track zeroshot15 clip`" in message and "cannot reach 127.0.0.1:9" in message
    assert not offline


def test_doctor_without_a_network_fails_at_the_model(offline: list[str], library: Path) -> None:
    with pytest.raises(UserError, match=r"cannot (download|reach|be reached)"):
        doctor("zeroshot15", dataset="handwritten")


def test_pretraining_a_pretrained_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pre-trained already.*vlmbench train DEFENSE --track zeroshot15"):
        pretrain_base("zeroshot15", tmp_path / "base", lambda *told: None)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("attack", ["fgsm", "pgd-2"])
def test_a_run_on_images_of_the_user(
    attack: str, user_images: Path, make_card: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(make_card()), "--attack", attack, "--workers", "1", "--out", str(tmp_path / "runs")]
    assert run_command(["run", *TRACK, *options, "--images", str(user_images), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["track"], found["protocol"]) == ("zeroshot15", "trusted/1")
    (score,) = found["scores"]
    assert (score["dataset"], score["classes"], score["n"], score["eps"]) == ("own", 3, 6, "1/255")
    assert 0 <= score["robust"] <= score["clean"] <= 1
    assert list((tmp_path / "runs" / "zeroshot15" / "untrained" / attack).glob("*/*.parquet"))


def test_a_plan_on_a_registered_dataset_takes_a_thousand_samples(make_card: Callable[..., Path]) -> None:
    (cell,) = resolve(
        Request(models=(str(make_card()),), attacks=("fgsm",), track="zeroshot15", datasets=("handwritten",))
    ).cells
    assert (cell.dataset.name, len(cell), cell.threat.eps_text) == ("handwritten", 1000, "1/255")


def test_a_model_is_checked_on_a_track_without_datasets(make_card: Callable[..., Path]) -> None:
    found = check("model", str(make_card()), track="zeroshot15")
    assert len(found) > 6 and all(contract.passed for contract in found)


def test_a_model_that_returns_probabilities_fails_its_check(
    make_card: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = clip.ZeroShotClassifier.forward
    monkeypatch.setattr(clip.ZeroShotClassifier, "forward", lambda self, images: forward(self, images).softmax(dim=1))
    failed = [each.name for each in check("model", str(make_card()), track="zeroshot15") if not each.passed]
    assert failed == ["no probabilities"]


REAL = Path(__file__).parents[2] / "shared" / "data" / "real"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are missing")
def test_a_run_of_the_real_architecture_on_real_images(
    write_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    name = "open_clip:ViT-B-32-quickgelu"
    card = write_model(tmp_path, "random", load_architecture(name).build(), name)
    # A random network predicts one class for nearly all images: make this class the label of all of them.
    files = sorted((REAL / "caltech101").glob("*/*.jpg"))[::80]
    images = torch.stack([Transform(224, 224)(Image.open(file)) for file in files]).float() / 255
    dataset = DATASETS.load("caltech101")
    answers = load_model(str(card), "zeroshot15").classifier(dataset.prompts)(images).argmax(dim=1)
    predicted = class_names("caltech101")[dataset.merged.index(int(answers.mode().values))]
    categories = tmp_path / "data" / "caltech101" / "101_ObjectCategories"
    (categories / predicted).mkdir(parents=True)
    for number, file in enumerate(files):
        (categories / predicted / f"image_{number + 1:04d}.jpg").symlink_to(file)
    command = ["run", *TRACK, "--model", str(card), "--dataset", "caltech101", "--data", str(tmp_path / "data")]
    command += ["--attack", "pgd-2", "--samples", "4", "--workers", "1", "--out", str(tmp_path / "runs"), "--json"]
    assert run_command(command) == 0
    found = json.loads(capsys.readouterr().out)
    (score,) = found["scores"]
    assert (score["classes"], score["n"], found["protocol"]) == (100, 4, "trusted-4/1")
    assert score["clean"] > 0 and found["passes"] > 6 * 4
    # The pixels of the run equal those of torchvision's transform.
    source = prepare_dataset(DATASETS.load("caltech101"), 4, tmp_path / "data").open()
    reference = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), PILToTensor()])
    for place in range(4):
        with Image.open(categories / source.ids[place]) as image:
            assert torch.equal(source.read([place])[0], reference(image.convert("RGB")))
    # The same command again does not change the scores. It needs no second measurement of the model's speed.
    monkeypatch.setattr("robustbench_vlm.engine.cost.measure_cell", lambda cell, resources: Speed(1.0, 1.0, 1, 1))
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == found["scores"]
