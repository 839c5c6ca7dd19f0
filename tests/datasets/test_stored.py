"""Tests of stored images: all formats of the datasets, damaged files, and real images if they are available."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from made_up_sets import make, noise
from PIL import Image
from python2_pickle import python2_pickle

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.prepare import prepare
from robustbench_vlm.datasets.prepared import PreparedSource
from robustbench_vlm.datasets.published import PUBLISHED, StoredImages, class_names
from robustbench_vlm.datasets.published.image_files import decode
from robustbench_vlm.datasets.transform import Transform

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not next to this checkout")


def bytes_of(picture: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


PICTURE = Image.fromarray(noise(0, 30, 40))
WHOLE = {
    "colour": (bytes_of(PICTURE, "jpeg"), "RGB"),
    "grey": (bytes_of(PICTURE.convert("L"), "jpeg"), "L"),
    "inks": (bytes_of(PICTURE.convert("CMYK"), "jpeg"), "CMYK"),
    "malformed exif": (bytes_of(PICTURE, "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"), "RGB"),
    "progressive": (bytes_of(PICTURE, "jpeg", progressive=True), "RGB"),
    "palette": (bytes_of(PICTURE.convert("P"), "png"), "P"),
    "transparent palette": (bytes_of(PICTURE.convert("P"), "png", transparency=bytes(range(256))), "P"),
    "transparent": (bytes_of(PICTURE.convert("RGBA"), "png"), "RGBA"),
    "grey and transparent": (bytes_of(PICTURE.convert("LA"), "png"), "LA"),
    "one bit": (bytes_of(PICTURE.convert("1"), "png"), "1"),
    "sixteen bits": (bytes_of(Image.fromarray(numpy.arange(1200, dtype=numpy.uint16).reshape(30, 40)), "png"), "I;16"),
    "png": (bytes_of(PICTURE, "png"), "RGB"),
    "gif": (bytes_of(PICTURE, "gif"), "P"),
    "bmp": (bytes_of(PICTURE, "bmp"), "RGB"),
    "webp": (bytes_of(PICTURE, "webp"), "RGB"),
    "tiff": (bytes_of(PICTURE, "tiff"), "RGB"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", WHOLE)
def test_format_is_detected_from_the_content(kind: str, tmp_path: Path) -> None:
    content, mode = WHOLE[kind]
    (tmp_path / "one.jpg").write_bytes(content)
    picture = decode(tmp_path / "one.jpg", "one.jpg")
    assert (picture.mode, picture.size) == (mode, (40, 30))
    assert picture.convert("RGBA").size == decode(io.BytesIO(content), "one").size == (40, 30)


def test_images_with_pillow_warnings_are_prepared(tmp_path: Path) -> None:
    root = tmp_path / "101_ObjectCategories" / "accordion"
    root.mkdir(parents=True)
    for place, kind in enumerate(("malformed exif", "transparent palette")):
        (root / f"image_{place:04d}.jpg").write_bytes(WHOLE[kind][0])
    folder = prepare("x", PUBLISHED["caltech101"].read(tmp_path), Transform(16, 16), None, tmp_path / "cache")
    assert PreparedSource(str(folder)).read([0, 1]).shape == (2, 3, 16, 16)


def test_decode_keeps_pixels_and_closes_the_file(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(WHOLE["png"][0])
    picture = decode(tmp_path / "one.jpg", "one.jpg")
    (tmp_path / "one.jpg").unlink()
    assert picture.tobytes() == noise(0, 30, 40).tobytes()


def test_decode_ignores_exif_rotation_and_keeps_the_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "one.jpg").write_bytes(bytes_of(PICTURE, "jpeg", exif=exif))
    picture = decode(tmp_path / "one.jpg", "one.jpg")
    assert picture.size == (40, 30) and picture.getexif()[0x0112] == 6


JPEG, PNG = WHOLE["colour"][0], WHOLE["png"][0]
BROKEN = {
    "empty": b"",
    "truncated": JPEG[: len(JPEG) // 2],
    "only the start": JPEG[:30],
    "without end": JPEG[:-300],
    "truncated png": PNG[: len(PNG) // 2],
    "damaged png": PNG[:200] + bytes(100) + PNG[300:],
    "web page": b"<!DOCTYPE html><html><title>404</title></html>",
    "zeros": bytes(5000),
    "text": b"0 0 10 10\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_error_names_a_damaged_image(kind: str, tmp_path: Path) -> None:
    folder = make("eurosat", tmp_path)
    path = folder / "2750" / "Forest" / "Forest_7.jpg"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(BROKEN[kind])
    pictures = PUBLISHED["eurosat"].read(folder)
    with pytest.raises(UnreadableImage, match=r"cannot read the image .*2750/Forest/Forest_7\.jpg: ") as caught:
        pictures.image(pictures.ids.index("Forest/Forest_7.jpg"))
    # The advice is added once, when the prepared image is read.
    assert "repair" not in str(caught.value)


def test_file_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    folder = make("eurosat", tmp_path)
    path = folder / "2750" / "Forest" / os.fsdecode(b"caf\xe9.jpg")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UserError, match=r"Forest/caf\\xe9\.jpg is not UTF-8.*rename it") as caught:
        PUBLISHED["eurosat"].read(folder)
    str(caught.value).encode()


def test_error_names_a_listed_image_that_is_missing(tmp_path: Path) -> None:
    folder = make("oxford-pets", tmp_path)
    (folder / "images" / "Abyssinian_1.jpg").unlink()
    pictures = PUBLISHED["oxford-pets"].read(folder)
    with pytest.raises(UnreadableImage, match=r"images/Abyssinian_1\.jpg"):
        pictures.image(pictures.ids.index("Abyssinian_1.jpg"))


def rows(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the path and the class of each real image of a dataset."""
    with (REAL / "manifest.csv").open(encoding="utf-8", newline="") as file:
        yield from ((REAL / row["path"], row["class"]) for row in csv.DictReader(file) if row["dataset"] == name)


def all_decoded(pictures: StoredImages) -> int:
    for index in range(len(pictures.ids)):
        picture = pictures.image(index).convert("RGB")
        assert picture.width > 0 and picture.height > 0
    return len(pictures.ids)


@needs_real
@pytest.mark.parametrize(
    ("name", "folder", "place", "count"),
    [
        ("caltech101", "caltech101", "101_ObjectCategories", 505),
        ("tiny-imagenet", "tiny_imagenet", "val", 1000),
    ],
)
def test_real_folders_are_read_whole(name: str, folder: str, place: str, count: int, tmp_path: Path) -> None:
    (tmp_path / place).symlink_to(REAL / folder)
    pictures = PUBLISHED[name].read(tmp_path)
    expected = {path.name if name == "tiny-imagenet" else f"{raw}/{path.name}": raw for path, raw in rows(folder)}
    found = zip(pictures.ids, pictures.labels, strict=True)
    assert {sample: class_names(name)[label] for sample, label in found} == expected
    assert all_decoded(pictures) == count


@needs_real
def test_real_dtd_images_are_read_by_list(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(REAL / "dtd")
    (tmp_path / "labels" / "test1.txt").write_text("".join(f"{raw}/{path.name}\n" for path, raw in rows("dtd")))
    assert all_decoded(PUBLISHED["dtd"].read(tmp_path)) == 200


@needs_real
def test_real_sun397_images_are_read_in_any_format(tmp_path: Path) -> None:
    known = set(class_names("sun397"))
    for path, raw in rows("sun397"):
        goal = (
            tmp_path / raw[0] / (raw if raw in known else {"desert": "desert/sand", "waterfall": "waterfall/fan"}[raw])
        )
        goal.mkdir(parents=True, exist_ok=True)
        (goal / path.name).symlink_to(path)
    (tmp_path / "ClassName.txt").write_text("".join(f"/{raw[0]}/{raw}\n" for raw in class_names("sun397")))
    assert all_decoded(PUBLISHED["sun397"].read(tmp_path)) == 160


@needs_real
@pytest.mark.parametrize(
    ("name", "batch", "key", "meta", "names"),
    [
        ("cifar10", "test_batch", "labels", "batches.meta", "label_names"),
        ("cifar100", "test", "fine_labels", "meta", "fine_label_names"),
    ],
)
def test_real_cifar_pixels_are_read_from_a_batch_file(
    name: str, batch: str, key: str, meta: str, names: str, tmp_path: Path
) -> None:
    samples = [(numpy.array(Image.open(path).convert("RGB")), raw) for path, raw in rows(name)]
    data = numpy.stack([pixels.transpose(2, 0, 1).reshape(-1) for pixels, _ in samples])
    labels = [class_names(name).index(raw) for _, raw in samples]
    (tmp_path / batch).write_bytes(python2_pickle({key: labels, "data": data}))
    (tmp_path / meta).write_bytes(python2_pickle({names: list(class_names(name))}))
    pictures = PUBLISHED[name].read(tmp_path)
    assert list(pictures.labels) == labels and len(labels) in (200, 500)
    assert all(numpy.array_equal(pictures.image(index), pixels) for index, (pixels, _) in enumerate(samples))


@needs_real
def test_real_stl10_pixels_are_read_from_the_binary_file(tmp_path: Path) -> None:
    samples = [(numpy.array(Image.open(path).convert("RGB")), raw) for path, raw in rows("stl10")]
    (tmp_path / "test_X.bin").write_bytes(b"".join(pixels.transpose(2, 1, 0).tobytes() for pixels, _ in samples))
    (tmp_path / "test_y.bin").write_bytes(bytes(class_names("stl10").index(raw) + 1 for _, raw in samples))
    (tmp_path / "class_names.txt").write_text("\n".join(class_names("stl10")))
    pictures = PUBLISHED["stl10"].read(tmp_path)
    assert [class_names("stl10")[label] for label in pictures.labels] == [raw for _, raw in samples]
    assert all(numpy.array_equal(pictures.image(index), pixels) for index, (pixels, _) in enumerate(samples))
