"""Tests of trainings on a folder of images: damaged images, and images that change under the same names."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.models.card import read_card
from robustbench_vlm.training.request import TrainingRequest, make_job

CLASSES = ("cat", "dog")
OPTIONS = ["--set", "batch_size=4", "--set", "steps=2", "--set", "warmup=0", "--device", "cpu"]


def write_image(path: Path, grey: int) -> None:
    # All BMP files of one size have the same number of bytes.
    Image.new("RGB", (32, 32), (grey, 255 - grey, grey // 2)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            write_image(folder / name / f"{index}.bmp", 40 * index + number)
    return folder


def train(images: Path, out: Path, *options: str) -> int:
    return run_command(["train", "tecoa", "--images", str(images), "--out", str(out), *OPTIONS, *options])


def digest_of(images: Path) -> str:
    return make_job(
        TrainingRequest("tecoa", "mini", images=images, settings={"batch_size": 4, "steps": 2})
    ).images.digest


@pytest.mark.parametrize(
    ("command", "can_skip"),
    [
        (["train", "tecoa", "--set", "batch_size=4", "--set", "steps=2"], False),
        (["sweep", "tecoa", "--grid", "lr=1e-3", "--train-fraction", "1", "--set", "batch_size=4"], False),
        (["run", "--attack", "fgsm", "--model", "clip", "--samples", "all", "--workers", "1"], True),
        (["plan", "--attack", "fgsm", "--model", "clip", "--samples", "all"], True),
    ],
)
def test_the_message_about_a_damaged_image_advises_only_options_of_the_command(
    command: list[str], can_skip: bool, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damaged in (images / name / "3.bmp" for name in CLASSES):
        damaged.write_bytes(damaged.read_bytes()[:100])
    assert run_command([*command, "--images", str(images), "--out", str(tmp_path / "out")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "3.bmp" in message and "repair or remove the file" in message
    assert ("--skip-unreadable" in message) == can_skip
    assert run_command([*command, "--help"]) == 0
    assert ("--skip-unreadable" in capsys.readouterr().out) == can_skip


def test_a_training_on_changed_images_is_not_taken_for_the_old_one(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(images, out) == 0
    first = read_card(out / "tecoa.json")
    assert train(images, out) == 0 and read_card(out / "tecoa.json").image == first.image
    for index in range(6):
        write_image(images / "cat" / f"{index}.bmp", 255 - 30 * index)
    capsys.readouterr()
    assert train(images, out) == 2
    assert "with other settings or other images" in " ".join(capsys.readouterr().err.split())
    assert train(images, out, "--no-resume") == 0
    second = read_card(out / "tecoa.json")
    assert second.image != first.image
    assert second.training["fingerprint"] != first.training["fingerprint"]
    assert second.training["images_digest"] != first.training["images_digest"]


@settings(deadline=None, derandomize=True, max_examples=12)
@given(name=st.sampled_from(CLASSES), index=st.integers(0, 5), place=st.integers(54, 3000), keep_time=st.booleans())
def test_any_changed_byte_of_an_image_changes_the_digest(
    name: str, index: int, place: int, keep_time: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes") / "images"
    for each in CLASSES:
        (folder / each).mkdir(parents=True)
        for number in range(6):
            write_image(folder / each / f"{number}.bmp", 20 * number)
    before = digest_of(folder)
    file = folder / name / f"{index}.bmp"
    content, status = bytearray(file.read_bytes()), file.stat()
    content[place] ^= 1
    file.write_bytes(content)
    if keep_time:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of(folder) != before
    content[place] ^= 1
    file.write_bytes(content)
    assert digest_of(folder) == before


def test_copied_and_touched_images_have_the_same_digest(images: Path, tmp_path: Path) -> None:
    before = digest_of(images)
    for file in images.rglob("*.bmp"):
        os.utime(file, (1, 1))
    shutil.copytree(images, tmp_path / "elsewhere" / images.name)
    assert digest_of(images) == digest_of(tmp_path / "elsewhere" / images.name) == before
    renamed = images / "cat" / "0.bmp"
    renamed.rename(images / "cat" / "new.bmp")
    assert digest_of(images) != before


def test_a_read_only_cache_does_not_stop_a_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "file"))
    assert digest_of(images) == digest_of(images)
