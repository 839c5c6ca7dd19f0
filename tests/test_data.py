"""Tests of `vlmbench data` with made-up copies of all published datasets."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_sets import make, make_shards
from PIL import Image

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.datasets.published.local_copy import find_images, is_other_split, prepare_dataset
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.tracks import ZEROSHOT15


def _answer(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> dict[str, Any]:
    assert run_command(["data", *command, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def test_data_list_has_the_order_of_the_track(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _answer(capsys, "list")["data"]
    assert [each["name"] for each in found] == list(ZEROSHOT15.datasets)
    assert all(0 < each["on_disk"] < each["samples"] and str(library) in each["where"] for each in found)
    assert run_command(["data", "list"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "also available by name: tiny-imagenet, country211, imagenet-r, imagenet-sketch, hateful-memes"


def test_data_list_names_the_next_step_for_missing_datasets(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {each["name"]: each for each in _answer(capsys, "list", *PUBLISHED)["data"]}
    assert set(found) == set(PUBLISHED) and not any(each["on_disk"] for each in found.values())
    assert found["cifar10"]["where"] == "vlmbench data prepare cifar10"
    assert "image-net.org" in found["imagenet"]["where"]
    assert run_command(["data", "list", "cifar10"]) == 0
    _, row, _, sources, by_hand = capsys.readouterr().out.splitlines()
    assert row.split()[-5:] == ["MiB", "vlmbench", "data", "prepare", "cifar10"]
    assert sources == "cifar10: hub clip-benchmark/wds_vtab-cifar10, then original CIFAR10"
    assert by_hand.startswith("  by hand: `hf download clip-benchmark/wds_vtab-cifar10 --repo-type dataset")


def test_data_list_continues_after_a_damaged_dataset(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(library, tmp_path / "data")
    name = "caltech101"
    folder = tmp_path / "data" / name / "101_ObjectCategories" / "zzz"
    folder.mkdir()
    (folder / "image_0001.jpg").write_bytes(b"")
    assert run_command(["data", "list", "--json", "--data", str(tmp_path / "data")]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["data"]}
    assert rows[name]["on_disk"] == 0 and rows[name]["where"].startswith("damaged: ")
    assert rows["cifar10"]["on_disk"] > 0


def test_data_prepare_writes_the_sample_list_and_its_digest(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _answer(capsys, "prepare", "dtd", "cifar10", "--no-download", "--lists", str(tmp_path / "lists"))
    text = (tmp_path / "lists" / "dtd-6.csv").read_bytes()
    assert text.startswith(b"id,label\n") and len(text.splitlines()) == 7
    assert hashlib.sha256(text).hexdigest() == first["prepared"]["dtd"]["list_digest"]
    assert first["protocol"] == "trusted/1" and list(first["prepared"]) == ["dtd", "cifar10"]
    assert Path(first["prepared"]["dtd"]["folder"], "000000.npy").is_file()
    few = _answer(capsys, "prepare", "dtd", "--samples", "3")["prepared"]["dtd"]
    assert few["samples"] == 3 and few["folder"] == first["prepared"]["dtd"]["folder"]
    assert few["list_digest"] != first["prepared"]["dtd"]["list_digest"]
    # A copy in another folder has the same sample list. Another transform changes the pixels, not the list.
    shutil.copytree(library / "dtd", tmp_path / "elsewhere" / "dtd")
    elsewhere = _answer(capsys, "prepare", "dtd", "--data", str(tmp_path / "elsewhere"))["prepared"]["dtd"]
    assert elsewhere["list_digest"] == first["prepared"]["dtd"]["list_digest"]
    agft = _answer(capsys, "prepare", "dtd", "--protocol", "agft-2026", "--samples", "3")["prepared"]["dtd"]
    assert agft["list_digest"] == few["list_digest"] and agft["folder"] != few["folder"]


def test_data_prepare_names_unreadable_images(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("dtd", empty)
    broken = sorted((empty / "dtd").rglob("*.jpg"))[0]
    for path in empty.rglob(broken.name):
        path.write_bytes(path.read_bytes()[:50])
    assert run_command(["data", "prepare", "dtd"]) == 0
    printed = capsys.readouterr().out
    assert "cannot read " in printed and broken.name in printed
    found = _answer(capsys, "prepare", "dtd")["prepared"]["dtd"]["unreadable"]
    ((name, reason),) = found.items()
    assert name.endswith(broken.name) and name in reason
    assert name in _answer(capsys, "verify", "dtd", code=1)["checked"]["dtd"][-1]


def test_data_prepare_names_the_next_step_if_a_download_is_impossible(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "ILSVRC2012" in _answer(capsys, "prepare", "imagenet", code=2)["error"]
    assert "vlmbench data prepare cifar10" in _answer(capsys, "prepare", "cifar10", "--no-download", code=2)["error"]
    assert "is part of this package" in _answer(capsys, "prepare", "shapes", code=2)["error"]
    assert "Did you mean cifar10" in _answer(capsys, "prepare", "cifar1", code=2)["error"]


def test_verify_finds_an_incomplete_dataset(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _answer(capsys, "verify") == {"passed": True, "checked": dict.fromkeys(ZEROSHOT15.datasets)}
    assert "dtd" in _answer(capsys, "verify", "dtd", code=1)["checked"]["dtd"][0]
    make("dtd", empty)
    (sentence,) = _answer(capsys, "verify", code=1)["checked"]["dtd"]
    assert "1880" in sentence


def test_verify_finds_a_changed_prepared_image(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("cifar10", empty)
    folder = Path(_answer(capsys, "prepare", "cifar10")["prepared"]["cifar10"]["folder"])
    before = _answer(capsys, "verify", "cifar10", code=1)["checked"]["cifar10"]
    content = bytearray((folder / "000000.npy").read_bytes())
    content[-5] ^= 255
    (folder / "000000.npy").write_bytes(content)
    after = _answer(capsys, "verify", "cifar10", code=1)["checked"]["cifar10"]
    assert len(after) == len(before) + 1 and "1 of 6 images" in after[-1]


def test_hub_shards_of_another_split_are_recognised(empty: Path) -> None:
    make_shards("eurosat", empty)
    other = prepare_dataset(DATASETS.load("eurosat"), None)
    assert is_other_split(other) and "VTAB" in other.split
    make_shards("dtd", empty)
    assert not is_other_split(prepare_dataset(DATASETS.load("dtd"), None))
    make("eurosat", empty)
    find_images.cache_clear()
    assert not is_other_split(prepare_dataset(DATASETS.load("eurosat"), None))


def test_data_prepare_continues_after_a_failed_dataset(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("dtd", empty)
    found = _answer(capsys, "prepare", "imagenet", "dtd", "--no-download", code=2)
    assert list(found["prepared"]) == ["dtd"] and "ILSVRC2012" in found["failed"]["imagenet"]


def test_changed_image_files_are_prepared_again(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("oxford-pets", empty)
    source = prepare_dataset(DATASETS.load("oxford-pets"), None).open()
    before = source.read(range(6))
    path = next(empty.rglob(f"{Path(source.ids[2]).stem}.jpg"))
    path.write_bytes(b"no image")
    find_images.cache_clear()
    broken = prepare_dataset(DATASETS.load("oxford-pets"), None).open()
    assert broken.digests(range(6))[2] == "" and broken.digests([0]) == source.digests([0])
    Image.new("RGB", (300, 240), "red").save(path)
    mended = prepare_dataset(DATASETS.load("oxford-pets"), None).open().read(range(6))
    assert [bool((mended[n] == before[n]).all()) for n in range(6)] == [True, True, False, True, True, True]
    assert mended[2].float().mean(dim=(1, 2)).tolist() == pytest.approx([254, 0, 0], abs=2)


def test_run_on_an_incomplete_dataset_has_a_warning(
    library: Path, make_card: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--track", "zeroshot15", "--model", str(make_card()), "--attack", "fgsm", "--dataset", "dtd"]
    assert run_command([*command, "--dataset", "imagenet", "--workers", "1", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all("incomplete" in score["warnings"] for score in found["scores"])
    # ImageNet is not part of the mean. Two datasets are not enough for the published mean.
    assert found["mean"]["clean"] == found["scores"][0]["clean"] and found["mean_as_published"] is None


def test_protocol_datasets_replace_those_of_the_track(library: Path, make_card: Callable[..., Path]) -> None:
    plan = resolve(
        Request(models=(str(make_card()),), attacks=("fgsm",), track="zeroshot15", protocol="fare-2024", samples=2)
    )
    assert [cell.dataset.name for cell in plan.cells] == list(plan.protocol.datasets) and len(plan.cells) == 13
