"""Tests of the Hub's tar shards: images, labels, order and class names, and damaged shards."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from made_up_sets import make_shards, noise
from PIL import Image

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.published import PUBLISHED, MissingData, class_names
from robustbench_vlm.datasets.published.class_lists import hub_class_names
from robustbench_vlm.datasets.published.tar_shards import read_shards

FACTS = Path(__file__).parents[2].parent / "shared" / "facts" / "prompts_clip_benchmark.json"


@pytest.mark.parametrize("name", [name for name, original in PUBLISHED.items() if original.hub])
def test_images_labels_and_order_equal_those_of_the_shards(name: str, tmp_path: Path) -> None:
    order, samples = hub_class_names(name), 2 * min(3, len(class_names(name)))
    found = read_shards(make_shards(name, tmp_path, samples=samples), name)
    assert found.ids == tuple(f"wds/s{number:07d}" for number in range(samples))
    assert [class_names(name)[label] for label in found.labels] == [order[number // 2] for number in range(samples)]
    for number in range(samples):
        assert found.image(number).tobytes() == noise(number, 20, 24).tobytes()


def test_shards_are_not_unpacked(tmp_path: Path) -> None:
    folder = make_shards("dtd", tmp_path)
    before = sorted(path.name for path in folder.rglob("*"))
    read_shards(folder, "dtd").image(5)
    assert sorted(path.name for path in folder.rglob("*")) == before == [
        "0.tar", "1.tar", "classnames.txt", "nshards.txt", "test",
    ]  # fmt: skip


def test_labels_depend_on_the_class_names_of_the_shards(tmp_path: Path) -> None:
    names = [name.replace("_", " ").upper() for name in reversed(class_names("food101"))]
    assert list(read_shards(make_shards("food101", tmp_path, names), "food101").labels) == [100, 100, 99, 99, 98, 98]


@pytest.mark.skipif(not FACTS.is_file(), reason="the lists of other projects are not next to this checkout")
@pytest.mark.parametrize(
    ("name", "other", "labels"),
    [
        ("flowers102", "flowers", [0, 1, 2]),
        ("eurosat", "eurosat", [0, 1, 2]),
        ("country211", "country211", [0, 1, 2]),
        ("imagenet", "imagenet1k", [0, 1, 2]),
        ("caltech101", "caltech101_vtab", [4, 5, 6]),
    ],
)
def test_readable_class_names_are_matched_by_position(name: str, other: str, labels: list[int], tmp_path: Path) -> None:
    written = json.loads(FACTS.read_text(encoding="utf-8"))["classnames"][other]
    found = read_shards(make_shards(name, tmp_path, written), name)
    assert list(found.labels) == [label for label in labels for _ in range(2)]


def test_caltech101_shards_are_read_without_background(tmp_path: Path) -> None:
    written = [name or "background_google" for name in hub_class_names("caltech101")]
    folder = make_shards("caltech101", tmp_path, written, first_label=3)
    found = read_shards(folder, "caltech101")
    assert found.ids == ("wds/s0000000", "wds/s0000001", "wds/s0000004", "wds/s0000005")
    assert [class_names("caltech101")[label] for label in found.labels] == ["ant", "ant", "barrel", "barrel"]


def test_unknown_number_or_order_of_classes_is_an_error(tmp_path: Path) -> None:
    folder = make_shards("eurosat", tmp_path)
    listing = folder / "classnames.txt"
    listing.write_text("".join(f"{line}\n" for line in class_names("eurosat")[:9]))
    with pytest.raises(UserError, match=r"classnames\.txt has 9 classes, expected the 10 classes of eurosat"):
        read_shards(folder, "eurosat")
    listing.write_text("".join(f"{line}\n" for line in ["Forest", "annual crop land", *class_names("eurosat")[2:]]))
    with pytest.raises(UserError, match="lists the classes of eurosat in an unknown order"):
        read_shards(folder, "eurosat")


def test_missing_shard_raises_missing_data(tmp_path: Path) -> None:
    folder = make_shards("dtd", tmp_path)
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(MissingData, match=r"1\.tar"):
        read_shards(folder, "dtd")
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(MissingData, match=r"nshards\.txt"):
        read_shards(folder, "dtd")


@pytest.mark.parametrize("kept", [0, 1, 300, 512, 1024, 2048, 4096, 5000, 9000])
def test_truncated_shard_is_an_error(kept: int, tmp_path: Path) -> None:
    shard = make_shards("dtd", tmp_path) / "test" / "1.tar"
    content = shard.read_bytes().rstrip(b"\0")
    assert len(content) < 9000 or kept < 9000
    shard.write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"cannot read .*1\.tar"):
        read_shards(shard.parents[1], "dtd")


def test_web_page_instead_of_a_shard_is_an_error(tmp_path: Path) -> None:
    shard = make_shards("dtd", tmp_path) / "test" / "0.tar"
    shard.write_bytes(b"<!DOCTYPE html>" + b" " * 4096 + bytes(2048))
    with pytest.raises(UserError, match=r"cannot read .*0\.tar"):
        read_shards(shard.parents[1], "dtd")


def test_labels_without_image_and_out_of_range_are_an_error(tmp_path: Path) -> None:
    folder = make_shards("stl10", tmp_path)
    with tarfile.open(folder / "test" / "1.tar", "w") as archive:
        for name, content in (("s0000009.cls", b"10"), ("s0000009.png", _png())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match="the label 10, expected labels from 0 to 9"):
        read_shards(folder, "stl10")
    with tarfile.open(folder / "test" / "1.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("s0000009.cls"), io.BytesIO())
    with pytest.raises(UserError, match=r"1\.tar"):
        read_shards(folder, "stl10")


@pytest.mark.parametrize("member", ["s0000002.png", "s0000002.cls", "other/s0000002.webp"])
def test_sample_with_two_images_or_labels_is_an_error(member: str, tmp_path: Path) -> None:
    folder = make_shards("dtd", tmp_path)
    with tarfile.open(folder / "test" / "0.tar", "a") as archive:
        content = b"7" if member.endswith("cls") else _png()
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match=r"0\.tar.*the sample s0000002 has two images or two labels"):
        read_shards(folder, "dtd")


def test_huge_number_of_shards_is_an_error_at_once(tmp_path: Path) -> None:
    folder = make_shards("dtd", tmp_path)
    (folder / "test" / "nshards.txt").write_text("1" + "0" * 15)
    with pytest.raises(MissingData, match=r"there is no .*\d\.tar"):
        read_shards(folder, "dtd")


def test_error_names_the_damaged_image_in_a_shard(tmp_path: Path) -> None:
    folder = make_shards("dtd", tmp_path)
    shard = folder / "test" / "1.tar"
    found = read_shards(folder, "dtd")
    content = bytearray(shard.read_bytes())
    start = found.members[4].start
    content[start : start + 64] = b"x" * 64
    shard.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"s0000004\.webp of .*1\.tar"):
        read_shards(folder, "dtd").image(4)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    return file.getvalue()
