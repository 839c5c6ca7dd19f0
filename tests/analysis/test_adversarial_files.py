"""Test files of adversarial images: images are read as written, and other files raise UserError."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustbench_vlm.analysis.adversarial_images import AdversarialImages, images_bytes, read_images, write_images
from robustbench_vlm.core.errors import UserError

PAIRS = (("shapes", "a"), ("colours", "a"), ("shapes", "b\n🔥"))


def test_images_are_read_bitwise_as_written(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    write_images(AdversarialImages("mini", PAIRS, images), tmp_path / "x.safetensors")
    found, digest = read_images(tmp_path / "x.safetensors")
    assert (found.track, found.samples) == ("mini", PAIRS) and len(digest) == 64
    assert torch.equal(found.images.view(torch.int32), images.view(torch.int32))


def test_equal_images_give_equal_bytes() -> None:
    images = AdversarialImages("mini", PAIRS, torch.zeros(3, 3, 2, 2))
    assert len({images_bytes(images) for _ in range(20)}) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_other_dtypes_are_converted_to_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    images = torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1)
    stored = (images * 255).round().to(dtype) if dtype == torch.uint8 else images.to(dtype)
    save_file({"images": stored}, tmp_path / "x", {"track": "mini", "samples": '[["shapes", "a"]]'})
    found, _ = read_images(tmp_path / "x")
    expected = stored.double() / 255 if dtype == torch.uint8 else stored.double()
    assert torch.equal(found.images, expected.float())


def _file(path: Path, **changes: object) -> Path:
    images = changes.get("images", torch.zeros(1, 3, 2, 2))
    samples = changes.get("samples", json.dumps([["shapes", "a"]]))
    save_file({str(changes.get("name", "images")): images}, path, {"track": "mini", "samples": samples})  # type: ignore[dict-item]
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"images": torch.zeros(2, 3, 2, 2)},
        {"images": torch.zeros(1, 1, 2, 2)},
        {"images": torch.zeros(3, 2, 2)},
        {"images": torch.full((1, 3, 2, 2), float("nan"))},
        {"images": torch.full((1, 3, 2, 2), 1.5)},
        {"images": torch.full((1, 3, 2, 2), -0.1)},
        {"images": torch.zeros(0, 3, 2, 2), "samples": "[]"},
        {"images": torch.zeros(1, 3, 0, 0)},
        {"images": torch.zeros(1, 3, 2, 2, dtype=torch.complex64)},
        {"images": torch.zeros(1, 3, 2, 2, dtype=torch.int64)},
        {"samples": '{"ab": 1}'},
        {"samples": '["ab"]'},
        {"samples": '[["a", 1]]'},
        {"samples": '[["a", "\\ud800"]]'},
        {"samples": "[" * 1000 + "]" * 1000},
        {"samples": "not json"},
        {"samples": "[1]"},
        {"samples": '["ab"]x'},
        {"images": torch.zeros(2, 3, 2, 2), "samples": '[["s", "a"], ["s", "a"]]'},
    ],
)
def test_a_safetensors_file_of_another_format_raises_user_error(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x"):
        read_images(_file(tmp_path / "x", **changes))


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04pickle", b"\xff" * 100])
def test_a_missing_file_and_any_other_content_raise_user_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="is not a file of adversarial images"):
        read_images(tmp_path / "x")
    with pytest.raises(UserError, match="is not a file of adversarial images"):
        read_images(tmp_path / "absent")
