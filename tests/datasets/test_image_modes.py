"""Tests of images in every Pillow mode: they are read as an image viewer shows them, or refused with a reason."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.image_folder import folder_dataset
from robustbench_vlm.datasets.transform import as_displayed

RAMP = numpy.tile(numpy.linspace(0, 255, 64).astype(numpy.uint8), (64, 1))
STEP = (RAMP > 127).astype(numpy.uint8)
GREY = Image.fromarray(RAMP).convert("RGB")
COLOUR = Image.merge("RGB", [Image.fromarray(RAMP), Image.fromarray(RAMP[:, ::-1]), Image.fromarray(RAMP)])
PALETTE = COLOUR.quantize(64)


def _half_transparent(image: Image.Image) -> Image.Image:
    """Return an image whose left half is transparent."""
    image = image.copy()
    image.putalpha(Image.fromarray(STEP * 255))
    return image


def _lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    found = ImageCms.applyTransform(COLOUR, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert found is not None
    return found


def _saved(image: Image.Image, name: str, folder: Path, **options: Any) -> Path:
    """Save an image in the classes "a" and "b" of a folder, and return the folder."""
    for label in ("a", "b"):
        (folder / label).mkdir(exist_ok=True)
        image.save(folder / label / name, **options)
    return folder


def _read(folder: Path) -> torch.Tensor:
    return folder_dataset(folder, "a {}.", 64).open().read([0])[0].int()


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).int()


DEEP = RAMP.astype(numpy.uint16) * 257
FILES: dict[str, tuple[Image.Image, str, dict[str, Any], Image.Image, int]] = {
    "1": (GREY.convert("1"), "x.png", {}, GREY.convert("1").convert("RGB"), 0),
    "L": (GREY.convert("L"), "x.png", {}, GREY, 0),
    "P": (PALETTE, "x.png", {}, PALETTE.convert("RGB"), 0),
    "CMYK": (COLOUR.convert("CMYK"), "x.tif", {}, COLOUR, 2),
    "YCbCr": (COLOUR.convert("YCbCr"), "x.tif", {}, COLOUR, 4),
    "LAB": (_lab(), "x.tif", {}, COLOUR, 20),
    "I;16 PNG": (Image.fromarray(DEEP), "x.png", {}, GREY, 0),
    "I;16 TIFF": (Image.fromarray(DEEP), "x.tif", {}, GREY, 0),
    "I;16 TIFF with white 0": (Image.fromarray(65535 - DEEP), "x.tif", {"tiffinfo": {262: 0}}, GREY, 0),
    "I PGM": (Image.fromarray(DEEP.astype(numpy.int32)), "x.pgm", {}, GREY, 0),
    "F TIFF": (Image.fromarray((RAMP / 255).astype(numpy.float32)), "x.tif", {}, GREY, 0),
}
"""Mode -> image, file name, options of Pillow's save, expected image, and allowed difference."""


@pytest.mark.parametrize("kind", FILES)
def test_every_mode_is_read_as_displayed(kind: str, tmp_path: Path) -> None:
    image, name, options, expected, tolerance = FILES[kind]
    found = _read(_saved(image, name, tmp_path, **options))
    assert (found - _pixels(expected)).abs().max() <= tolerance


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "PA"])
def test_modes_that_files_do_not_have_are_read_as_displayed(mode: str) -> None:
    found = as_displayed((PALETTE if mode == "PA" else COLOUR).convert(mode))
    assert (_pixels(found) - _pixels(COLOUR)).abs().max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparent_pixels_of_an_image_with_alpha_channel_are_white(mode: str) -> None:
    found = _pixels(as_displayed(_half_transparent(COLOUR if mode[0] == "R" else GREY.convert("L")).convert(mode)))
    expected = _pixels(COLOUR if mode[0] == "R" else GREY)
    assert (found[:, :, :32] == 255).all() and torch.equal(found[:, :, 32:], expected[:, :, 32:])


TRANSPARENT: dict[str, tuple[Image.Image, Any]] = {
    "P": (Image.fromarray(STEP).convert("P"), 0),
    "L": (Image.fromarray(STEP * 200), 0),
    "RGB": (Image.fromarray(STEP * 200).convert("RGB"), (0, 0, 0)),
    "I;16": (Image.fromarray(STEP.astype(numpy.uint16) * 51400), 0),
    "RGBA": (_half_transparent(GREY), None),
    "LA": (_half_transparent(GREY.convert("L")), None),
}
"""Mode -> image, and the value or colour that is transparent."""


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_transparent_pixels_of_a_file_are_white(mode: str, tmp_path: Path) -> None:
    image, value = TRANSPARENT[mode]
    found = _read(_saved(image, "x.png", tmp_path, **({} if value is None else {"transparency": value})))
    assert (found[:, :, :32] == 255).all() and (found[:, :, 32:-1] < 255).all()


@pytest.mark.parametrize(
    "values",
    [
        DEEP.astype(numpy.int32),
        RAMP.astype(numpy.int32) - 128,
        RAMP.astype(numpy.float32),
        RAMP.astype(numpy.float32) / 255 - 0.5,
        numpy.full((9, 9), numpy.nan, numpy.float32),
    ],
    ids=["32-bit", "negative", "float to 255", "negative float", "NaN"],
)
def test_pixels_without_a_known_white_value_are_refused(values: Any, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"a/x\.tif.* expected .* convert the image to 8 bits"):
        _read(_saved(Image.fromarray(values), "x.tif", tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_in_every_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder = _saved(COLOUR, "x.png", tmp_path, exif=exif)
    with Image.open(folder / "a" / "x.png") as image:
        assert torch.equal(_read(folder), _pixels(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"garbage" * 3, b"II*\0\x08\0\0\0\xff\xff", b"II*\0\x08\0\0\0\x01\0\x12\x01"])
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp"])
def test_damaged_exif_data_do_not_make_an_image_unreadable(name: str, exif: bytes, tmp_path: Path) -> None:
    for folder in ("damaged", "plain"):
        (tmp_path / folder).mkdir()
    damaged = _saved(COLOUR, name, tmp_path / "damaged", exif=b"Exif\0\0" + exif)
    assert torch.equal(_read(damaged), _read(_saved(COLOUR, name, tmp_path / "plain")))
