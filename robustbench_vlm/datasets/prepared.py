"""Prepared images: decoded and resized once, stored as 8-bit pixels in memory-mapped files.

A folder holds index.json, which names every sample in the standard order, and one pair of files for each run of CHUNK
samples that was asked for so far: the pixels (numpy, uint8), and a JSON file with the sha256 of every image and the
size and time of the file that it was read from. A chunk is there when its JSON file is, which is written last; a
preparation that was killed goes on with the first missing one. A chunk whose files were changed since is made again.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import read_ahead
from robustbench_vlm.datasets.base import UnreadableImage, image_sha256

if TYPE_CHECKING:
    import numpy

CHUNK = 250
"""Samples that are stored together: 38 MB at 224 pixels, which a killed preparation loses at most."""


class PreparedSource:
    """The samples of a prepared folder in the standard order; all have names, those prepared so far have images."""

    def __init__(self, folder: str, merged: Sequence[int] = ()) -> None:
        self._folder = Path(folder)
        self.ids, labels = _index(self._folder)
        self.labels = tuple(merged[label] for label in labels) if merged else labels

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return images, uint8 (B, 3, H, W); raise UnreadableImage for one that could not be decoded."""
        for index in indices:
            if not self.digests([index])[0]:
                reason = _chunk_digests(self._folder, index // CHUNK)["unreadable"][str(index % CHUNK)]
                raise UnreadableImage(f"{reason}; mend the file, or go on without it by --skip-unreadable")
        images = torch.stack([torch.from_numpy(self._row(index).copy()) for index in indices])
        self._read_ahead(max(indices) + 1, len(indices))
        return images

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Return the sha256 of each image's pixels as prepared, "" for one that could not be decoded."""
        return [_chunk_digests(self._folder, index // CHUNK)["sha256"][index % CHUNK] for index in indices]

    def _read_ahead(self, start: int, count: int) -> None:
        """Have the next samples read while these are attacked, for whichever worker will ask for them."""
        for chunk in range(start // CHUNK, -(-(start + count) // CHUNK)):
            if (self._folder / digest_name(chunk)).is_file():
                pixels = _chunk_pixels(self._folder, chunk)
                first, row = max(start - chunk * CHUNK, 0), pixels[:1].nbytes
                read_ahead(self._folder / pixel_name(chunk), pixels.offset + first * row, count * row)

    def _row(self, index: int) -> "numpy.ndarray[Any, Any]":
        row: numpy.ndarray[Any, Any] = _chunk_pixels(self._folder, index // CHUNK)[index % CHUNK]
        return row


def prepared_rows(folder: Path) -> int:
    """Return how many samples of a prepared folder have images."""
    return sum(len(read_json(path)["sha256"]) for path in folder.glob("*.json") if path.name != "index.json")


def unreadable(folder: Path, count: int) -> dict[str, str]:
    """Return why, by id, those of the first `count` samples have no image that could not be decoded."""
    ids, _ = _index(folder)
    return {
        ids[chunk * CHUNK + int(row)]: reason
        for chunk in range(-(-count // CHUNK))
        for row, reason in _chunk_digests(folder, chunk)["unreadable"].items()
        if chunk * CHUNK + int(row) < count
    }


def forget() -> None:
    """Read files again that may have been written anew."""
    _chunk_pixels.cache_clear()
    _chunk_digests.cache_clear()


def verify_prepared(folder: Path) -> list[str]:
    """Hash every prepared image again and return a sentence for each file that is not as it was written."""
    try:
        read_json(folder / "index.json")
    except UserError as error:
        return [str(error)]
    found = []
    for path in sorted(path for path in folder.glob("*.json") if path.name != "index.json"):
        chunk = int(path.stem) // CHUNK
        try:
            known = _chunk_digests.__wrapped__(folder, chunk)
            pixels = _chunk_pixels.__wrapped__(folder, chunk)
        except UserError as error:
            found.append(str(error))
            continue
        digests = [image_sha256(torch.from_numpy(row.copy())) for row in pixels]
        wrong = sum(a != b for a, b in zip(known["sha256"], digests, strict=True) if a)
        if wrong:
            found.append(
                f"{wrong} of {len(digests)} images in {path.with_suffix('.npy')} are not those that were prepared"
            )
        if undecoded := known["unreadable"]:
            found.append(f"{len(undecoded)} images of {path} could not be decoded: {next(iter(undecoded.values()))}")
    return found


@functools.lru_cache(maxsize=32)
def _index(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the ids and labels of a folder, read once: a worker opens the same dataset for every shard."""
    index = read_json(folder / "index.json")
    return tuple(index["ids"]), tuple(index["labels"])


@functools.lru_cache(maxsize=64)
def _chunk_pixels(folder: Path, chunk: int) -> "numpy.memmap[Any, Any]":
    import numpy

    try:
        pixels: numpy.memmap[Any, Any] = numpy.load(folder / pixel_name(chunk), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(_damaged(folder / pixel_name(chunk), error)) from error
    return pixels


@functools.lru_cache(maxsize=64)
def _chunk_digests(folder: Path, chunk: int) -> dict[str, Any]:
    path = folder / digest_name(chunk)
    if not path.is_file():
        raise UserError(
            f"the samples from {chunk * CHUNK} on are not prepared in {folder} on this machine: run the same command"
            " where the dataset is, or `vlmbench data prepare` here"
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the document of one of the files; raise UserError where it is missing or damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(_damaged(path, error)) from error
    return values


def _damaged(path: Path, error: Exception) -> str:
    return f"the prepared file {path} is missing or damaged ({error}): remove the folder {path.parent} and prepare anew"


def pixel_name(chunk: int) -> str:
    """Return the name of the file that holds a chunk's pixels."""
    return f"{chunk * CHUNK:06d}.npy"


def digest_name(chunk: int) -> str:
    """Return the name of the file that a chunk is there by."""
    return f"{chunk * CHUNK:06d}.json"
