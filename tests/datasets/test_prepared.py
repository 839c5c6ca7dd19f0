"""Tests of prepared images: pixels equal torchvision's transforms, the order is standard, chunks are complete."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets import prepared
from robustbench_vlm.datasets.base import UnreadableImage, image_sha256
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.prepare import prepare
from robustbench_vlm.datasets.prepared import CHUNK, PreparedSource, prepared_rows, verify_prepared
from robustbench_vlm.datasets.transform import NATIVE, Transform

SMALL = Transform(20, 16, "bicubic")


def _noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels).convert(mode)


class NoiseImages:
    """Random images of different sizes. The images with an index in `broken` cannot be decoded."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), delay: float = 0) -> None:
        self.ids = [f"test/{number:05d}.png" for number in range(count)]
        self.labels = [number % 3 for number in range(count)]
        self.broken, self.delay, self.asked = broken, delay, 0

    def stamp(self, index: int) -> str:
        return "as it was"

    def image(self, index: int) -> Image.Image:
        time.sleep(self.delay)
        self.asked += 1
        if index in self.broken:
            raise UnreadableImage(f"cannot read {self.ids[index]}")
        return _noise(24 + index % 5, 30, seed=index)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (33, 33), (16, 200)])
def test_resize_and_crop_equal_those_of_torchvision(interpolation: str, size: tuple[int, int]) -> None:
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose([transforms.Resize(32, mode), transforms.CenterCrop(24), transforms.PILToTensor()])
    picture = _noise(*size)
    assert torch.equal(Transform(32, 24, interpolation)(picture), reference(picture))  # type: ignore[arg-type]
    squashed = transforms.Compose([transforms.Resize((32, 32), mode), transforms.PILToTensor()])
    assert torch.equal(Transform(32, None, interpolation, squash=True)(picture), squashed(picture))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_images_are_converted_to_rgb_as_in_pillow(mode: str) -> None:
    picture = _noise(30, 20, mode=mode)
    expected = torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(NATIVE(picture), expected)


def test_16_bit_images_keep_the_upper_8_bits(tmp_path: Path) -> None:
    values = numpy.arange(0, 65536, 64, dtype=numpy.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as picture:
        assert torch.equal(NATIVE(picture)[0], torch.from_numpy((values >> 8).astype(numpy.uint8)))


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _noise(30, 20).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        assert NATIVE(picture).shape == (3, 20, 30)


def test_preparation_starts_with_the_standard_order_and_continues_later(tmp_path: Path) -> None:
    stored = NoiseImages(2 * CHUNK + 30)
    order = standard_order(stored.ids, stored.labels)
    folder = prepare("made-up", stored, SMALL, 10, tmp_path)
    assert prepared_rows(folder) == CHUNK == stored.asked
    source = PreparedSource(str(folder))
    assert list(source.ids) == [stored.ids[place] for place in order]
    assert list(source.labels) == [stored.labels[place] for place in order]
    images = source.read([3, 0])
    assert torch.equal(images[0], SMALL(_noise(24 + order[3] % 5, 30, seed=order[3])))
    assert source.digests([3, 0]) == [image_sha256(image) for image in images]
    with pytest.raises(UserError, match="samples from index 250 are not prepared"):
        source.read([CHUNK])
    assert prepare("made-up", stored, SMALL, None, tmp_path) == folder
    assert prepared_rows(folder) == len(stored.ids) == stored.asked
    assert torch.equal(PreparedSource(str(folder)).read([3, 0]), images)
    prepare("made-up", stored, SMALL, None, tmp_path)
    assert stored.asked == len(stored.ids)


def test_read_asks_the_system_to_read_the_next_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare("made-up", NoiseImages(CHUNK + 30), SMALL, None, tmp_path)
    source, advised = PreparedSource(str(folder)), []

    def advise(path: Path, start: int, length: int) -> None:
        advised.append(path.read_bytes()[start : start + length])

    monkeypatch.setattr(prepared, "read_ahead", advise)
    source.read(range(CHUNK - 40, CHUNK - 10))
    following = source.read(range(CHUNK - 10, CHUNK + 20)).numpy()
    assert advised[0] == following[:10].tobytes() and advised[1].startswith(following[10:].tobytes())
    del advised[:]
    source.read([CHUNK + 29])
    assert advised == [b""]


def test_each_transform_and_image_list_has_a_separate_folder(tmp_path: Path) -> None:
    folders = {
        prepare("made-up", NoiseImages(count), transform, 10, tmp_path)
        for count in (20, 21)
        for transform in (SMALL, Transform(20, 17))
    }
    assert len(folders) == 4


def test_merged_labels_do_not_change_the_order(tmp_path: Path) -> None:
    folder = prepare("made-up", NoiseImages(40), SMALL, 10, tmp_path)
    apart, together = PreparedSource(str(folder)), PreparedSource(str(folder), (0, 0, 1))
    assert together.ids == apart.ids and together.labels == tuple((0, 0, 1)[label] for label in apart.labels)


def test_unreadable_image_raises_when_it_is_read(tmp_path: Path) -> None:
    stored = NoiseImages(12, broken=(4, 7))
    source = PreparedSource(str(prepare("made-up", stored, SMALL, None, tmp_path)))
    place = source.ids.index("test/00004.png")
    assert [digest == "" for digest in source.digests(range(12))].count(True) == 2
    with pytest.raises(UnreadableImage, match=r"cannot read test/00004.png.*; repair or remove the file$"):
        source.read([place])
    assert len(source.read([n for n, digest in enumerate(source.digests(range(12))) if digest])) == 10


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different sizes"):
        prepare("made-up", NoiseImages(12), NATIVE, None, tmp_path)


def test_verify_prepared_finds_changed_files(tmp_path: Path) -> None:
    folder = prepare("made-up", NoiseImages(30), SMALL, None, tmp_path)
    assert verify_prepared(folder) == []
    pixels = folder / "000000.npy"
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    (found,) = verify_prepared(folder)
    assert "1 of 30 images" in found and "000000.npy" in found
    pixels.write_bytes(content[:-100])
    (found,) = verify_prepared(folder)
    assert "missing or damaged" in found
    pixels.unlink()
    (found,) = verify_prepared(folder)
    assert "missing or damaged" in found
    with pytest.raises(UserError, match="missing or damaged"):
        PreparedSource(str(folder)).read([0])


TOGETHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prepared import NoiseImages, SMALL
from robustbench_vlm.datasets.prepare import prepare
from robustbench_vlm.datasets.prepared import PreparedSource
stored = NoiseImages(600, delay=0.001)
stored.stamp = lambda index: sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
source = PreparedSource(str(prepare("made-up", stored, SMALL, None, Path(sys.argv[1]))))
for _ in range(20):
    source.read([0, 300, 599])
    source.digests(range(600))
print(stored.asked)
"""


@pytest.mark.parametrize("stamps", [["same"] * 4, [str(number) for number in range(4)]], ids=["one copy", "4 copies"])
def test_four_processes_prepare_one_dataset_at_the_same_time(stamps: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER, str(tmp_path), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(
            [*command, stamp], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for stamp in stamps
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [errors[-300:] for _, errors in answers]
    if len(set(stamps)) == 1:
        assert sum(int(output) for output, _ in answers) == 600
    (folder,) = (tmp_path / "prepared" / "made-up").iterdir()
    assert verify_prepared(folder) == []


def test_equal_pixels_from_a_copied_dataset_are_not_written_again(tmp_path: Path) -> None:
    stored = NoiseImages(30)
    folder = prepare("made-up", stored, SMALL, None, tmp_path)
    before = (folder / "000000.npy").stat()
    stored.stamp = lambda index: "a copy"  # type: ignore[method-assign]
    assert prepare("made-up", stored, SMALL, None, tmp_path) == folder and stored.asked == 60
    after = (folder / "000000.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    prepare("made-up", stored, SMALL, None, tmp_path)
    assert stored.asked == 60


def test_other_files_in_a_prepared_folder_are_ignored(tmp_path: Path) -> None:
    folder = prepare("made-up", NoiseImages(30), SMALL, None, tmp_path)
    for name in ("notes.json", "1.json.json", "0.json"):
        (folder / name).write_text("not JSON")
    assert verify_prepared(folder) == [] and prepared_rows(folder) == 30
    (folder / "000000.json").write_text("not JSON")
    assert len(verify_prepared(folder)) == 1 and prepared_rows(folder) == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"sha256": []}', "\udcff"])
@pytest.mark.parametrize("name", ["index.json", "000000.json", "000000.npy"])
def test_damaged_prepared_files_are_reported_and_replaced(name: str, content: str, tmp_path: Path) -> None:
    folder = prepare("made-up", NoiseImages(30), SMALL, None, tmp_path)
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    prepared.forget()
    prepared._index.cache_clear()
    assert verify_prepared(folder)
    with pytest.raises(UserError, match="remove the folder"):
        PreparedSource(str(folder)).read([0])
    if name == "000000.json":
        prepare("made-up", NoiseImages(30), SMALL, None, tmp_path)
        assert PreparedSource(str(folder)).read([0]).shape == (1, 3, 16, 16) and not verify_prepared(folder)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prepared import NoiseImages, SMALL
from robustbench_vlm.datasets.prepare import prepare
prepare("made-up", NoiseImages(600, delay=0.002), SMALL, None, Path(sys.argv[1]))
"""


def test_killed_preparation_is_continued_without_damaged_chunks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(Path(__file__).parent)]
    with subprocess.Popen(command, env=os.environ) as process:
        while not list((tmp_path / "killed").rglob("000000.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = len(list((tmp_path / "killed").rglob("*.npy")))
    assert before < 3
    stored = NoiseImages(600)
    killed = prepare("made-up", stored, SMALL, None, tmp_path / "killed")
    assert stored.asked <= 600 - CHUNK and verify_prepared(killed) == []
    whole = prepare("made-up", NoiseImages(600), SMALL, None, tmp_path / "whole")
    for name in ("index.json", *(f"{start:06d}.{end}" for start in (0, 250, 500) for end in ("npy", "json"))):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_progress_is_reported_per_chunk(tmp_path: Path) -> None:
    told: list[tuple[int, int | None, str]] = []
    prepare(
        "made-up",
        NoiseImages(600),
        SMALL,
        None,
        tmp_path,
        lambda progress: told.append((progress.done, progress.total, progress.label)),
    )
    assert told == [(250, 600, "preparing made-up"), (500, 600, "preparing made-up"), (600, 600, "preparing made-up")]


def test_error_for_a_damaged_index_names_the_next_step(tmp_path: Path) -> None:
    folder = prepare("made-up", NoiseImages(30), SMALL, None, tmp_path)
    (folder / "index.json").write_text(json.dumps([])[:1], encoding="utf-8")
    with pytest.raises(UserError, match="remove the folder"):
        PreparedSource(str(folder))
