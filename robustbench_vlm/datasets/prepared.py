"""Read prepared images. These are 8-bit pixels, already decoded and resized, in memory-mapped files.

A prepared folder has the file index.json with the ids and labels of all samples in the standard order. The pixels are
stored in chunks of `CHUNK` samples. Each chunk has two files:

* NNNNNN.npy: the pixels, uint8 [B, 3, H, W].
* NNNNNN.json: the sha256 of each image, and the size and modification time of its original file.

NNNNNN is the index of the chunk's first sample. The JSON file is written last, so a chunk is complete if its JSON file
exists. If a preparation is killed, the next preparation continues at the first incomplete chunk. If the original file
of an image has changed, the chunk of this image is prepared again.
"""

import contextlib
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import read_ahead
from robustbench_vlm.datasets.base import UnreadableImage, image_sha256

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

PREPARED_SOURCE = "robustbench_vlm.datasets.prepared:PreparedSource"
CHUNK = 250
"""Number of samples per chunk. A chunk has 38 MB if images have 224 x 224 pixels. If a preparation is killed, at most
one chunk is lost.
"""

_CHUNK_FILE = re.compile(r"\d{6,}\.json")


class PreparedSource:
    """The samples of a prepared folder, in the standard order.

    `ids` has the ids of all samples, but the images of some samples may not be prepared yet.
    """

    def __init__(self, folder: str, merged: Sequence[int] = ()) -> None:
        self._folder = Path(folder)
        self.ids, labels = _index(self._folder)
        self.labels = tuple(merged[label] for label in labels) if merged else labels

    def read(self, indices: Sequence[int]) -> "Tensor":
        """Return the images at B indices as uint8 [B, 3, H, W].

        Raises UnreadableImage if an image could not be decoded.
        """
        import torch

        for index in indices:
            if not self.digests([index])[0]:
                reason = _chunk_digests(self._folder, index // CHUNK)["unreadable"][str(index % CHUNK)]
                raise UnreadableImage(f"{reason}; repair or remove the file")
        images = torch.stack([torch.from_numpy(self._row(index).copy()) for index in indices])
        self._read_ahead(max(indices) + 1, len(indices))
        return images

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Return the sha256 of each image's prepared pixels. The sha256 is "" if the image cannot be decoded."""
        return [_chunk_digests(self._folder, index // CHUNK)["sha256"][index % CHUNK] for index in indices]

    def _read_ahead(self, start: int, count: int) -> None:
        """Ask the operating system to read `count` samples from the disk in the background, for fast later reads."""
        for chunk in range(start // CHUNK, -(-(start + count) // CHUNK)):
            if (self._folder / digest_name(chunk)).is_file():
                pixels = _chunk_pixels(self._folder, chunk)
                first, row = max(start - chunk * CHUNK, 0), pixels[:1].nbytes
                read_ahead(self._folder / pixel_name(chunk), pixels.offset + first * row, count * row)

    def _row(self, index: int) -> "numpy.ndarray[Any, Any]":
        row: numpy.ndarray[Any, Any] = _chunk_pixels(self._folder, index // CHUNK)[index % CHUNK]
        return row


def prepared_rows(folder: Path) -> int:
    """Return the number of prepared samples in a folder.

    Samples whose image cannot be decoded are counted. Chunks with a damaged JSON file are not counted.
    """
    count = 0
    for path in _chunk_files(folder):
        with contextlib.suppress(UserError):
            count += len(read_json(path, "sha256")["sha256"])
    return count


def _chunk_files(folder: Path) -> list[Path]:
    """Return the JSON files of the complete chunks of a prepared folder, in order."""
    return sorted(path for path in folder.glob("*.json") if _CHUNK_FILE.fullmatch(path.name))


def unreadable(folder: Path, count: int) -> dict[str, str]:
    """Return the images among the first `count` samples that cannot be decoded, as a mapping from id to reason."""
    ids, _ = _index(folder)
    return {
        ids[chunk * CHUNK + int(row)]: reason
        for chunk in range(-(-count // CHUNK))
        for row, reason in _chunk_digests(folder, chunk)["unreadable"].items()
        if chunk * CHUNK + int(row) < count
    }


def forget() -> None:
    """Clear the caches of chunk files. Call this function after a chunk was written again."""
    _chunk_pixels.cache_clear()
    _chunk_digests.cache_clear()


def verify_prepared(folder: Path) -> list[str]:
    """Compare every prepared image with its stored sha256 and return one sentence per problem."""
    try:
        read_json(folder / "index.json", "ids", "labels")
    except UserError as error:
        return [str(error)]
    found = []
    for path in _chunk_files(folder):
        chunk = int(path.stem) // CHUNK
        try:
            known = _chunk_digests.__wrapped__(folder, chunk)
            digests = stored_digests(folder, chunk)
        except UserError as error:
            found.append(str(error))
            continue
        wrong = sum(a != b for a, b in zip(known["sha256"], digests, strict=False) if a)
        if wrong or len(known["sha256"]) != len(digests):
            found.append(
                f"{max(wrong, abs(len(known['sha256']) - len(digests)))} of {len(digests)} images in"
                f" {path.with_suffix('.npy')} have changed since they were prepared"
            )
        if undecoded := known["unreadable"]:
            found.append(f"{len(undecoded)} images of {path} could not be decoded: {next(iter(undecoded.values()))}")
    return found


def stored_digests(folder: Path, chunk: int) -> list[str]:
    """Compute the sha256 of each image's pixels in the file of a chunk."""
    import torch

    return [image_sha256(torch.from_numpy(row.copy())) for row in _chunk_pixels.__wrapped__(folder, chunk)]


@functools.lru_cache(maxsize=32)
def _index(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the ids and labels of a prepared folder.

    The result is cached, because a run opens a dataset several times.
    """
    index = read_json(folder / "index.json", "ids", "labels")
    return tuple(index["ids"]), tuple(index["labels"])


@functools.lru_cache(maxsize=64)
def _chunk_pixels(folder: Path, chunk: int) -> "numpy.memmap[Any, Any]":
    import numpy

    try:
        pixels: numpy.memmap[Any, Any] = numpy.load(folder / pixel_name(chunk), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(_damaged(folder / pixel_name(chunk), error)) from error
    return pixels


@functools.lru_cache(maxsize=64)
def _chunk_digests(folder: Path, chunk: int) -> dict[str, Any]:
    path = folder / digest_name(chunk)
    if not path.is_file():
        raise UserError(
            f"the samples from index {chunk * CHUNK} are not prepared in {folder} on this machine: run"
            " this command on the machine that has the images (or `vlmbench data prepare` here), or set VLMBENCH_CACHE"
            " to a folder that all machines share"
        )
    return read_json(path, "sha256", "unreadable")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return the content of a JSON file in a prepared folder, which must be an object with all keys in `keys`.

    Raises UserError if the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if not isinstance(values, dict) or key not in values]
        if missing or not isinstance(values, dict):
            raise ValueError(f"the file lacks {' and '.join(missing) or 'an object'}")
    except (OSError, ValueError) as error:
        raise UserError(_damaged(path, error)) from error
    return values


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"the prepared file {path} is missing or damaged ({error}): remove the folder {path.parent}, then run"
        " the same command again"
    )


def pixel_name(chunk: int) -> str:
    """Return the name of the file with the pixels of a chunk."""
    return f"{chunk * CHUNK:06d}.npy"


def digest_name(chunk: int) -> str:
    """Return the name of the JSON file of a chunk. The chunk is complete if this file exists."""
    return f"{chunk * CHUNK:06d}.json"
