"""Prepared pictures: decoded and resized once, stored as 8-bit pixels in memory-mapped files.

A folder holds index.json, which names every sample in the standard order, and one pair of files for each run of CHUNK
samples that was asked for so far: the pixels (numpy, uint8), and a JSON file with the sha256 of every picture and the
size and time of the file that it was read from. A chunk is there when its JSON file is, which is written last; a
preparation that was killed goes on with the first missing one. A chunk whose files were changed since is made again.
"""

import functools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustbench_vlm.datasets.dataset import UnreadableImage, image_sha256
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.originals.original import Pictures
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.errors import UserError
from robustbench_vlm.files import read_ahead, write_text, write_whole
from robustbench_vlm.progress import Tell
from robustbench_vlm.records import fingerprint, plain

if TYPE_CHECKING:
    import numpy

CHUNK = 250
"""Samples that are stored together: 38 MB at 224 pixels, which a killed preparation loses at most."""


class PreparedSource:
    """The samples of a prepared folder in the standard order; all have names, those prepared so far have pictures."""

    def __init__(self, folder: str, merged: Sequence[int] = ()) -> None:
        self._folder = Path(folder)
        self.ids, labels = _index(self._folder)
        self.labels = tuple(merged[label] for label in labels) if merged else labels

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return pictures, uint8 (B, 3, H, W); raise UnreadableImage for one that could not be decoded."""
        for index in indices:
            if not self.digests([index])[0]:
                reason = _chunk_digests(self._folder, index // CHUNK)["unreadable"][str(index % CHUNK)]
                raise UnreadableImage(f"{reason}; mend the file, or go on without it by --skip-unreadable")
        pictures = torch.stack([torch.from_numpy(self._row(index).copy()) for index in indices])
        self._read_ahead(max(indices) + 1, len(indices))
        return pictures

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Return the sha256 of each picture's pixels as prepared, "" for one that could not be decoded."""
        return [_chunk_digests(self._folder, index // CHUNK)["sha256"][index % CHUNK] for index in indices]

    def _read_ahead(self, start: int, count: int) -> None:
        """Have the next samples read while these are attacked, for whichever worker will ask for them."""
        for chunk in range(start // CHUNK, -(-(start + count) // CHUNK)):
            if (self._folder / _digest_name(chunk)).is_file():
                pixels = _chunk_pixels(self._folder, chunk)
                first, row = max(start - chunk * CHUNK, 0), pixels[:1].nbytes
                read_ahead(self._folder / _pixel_name(chunk), pixels.offset + first * row, count * row)

    def _row(self, index: int) -> "numpy.ndarray[Any, Any]":
        row: numpy.ndarray[Any, Any] = _chunk_pixels(self._folder, index // CHUNK)[index % CHUNK]
        return row


def prepare(
    name: str, pictures: Pictures, transform: Transform, count: int | None, cache: Path, tell: Tell | None = None
) -> Path:
    """Prepare the first `count` samples of the standard order (None: all) and return their folder.

    What is there already is kept, unless the files that it was read from were changed. Raises UserError where the disk
    has no room or cannot be written; pictures that cannot be decoded are noted, and raise when they are read.
    """
    order = standard_order(pictures.ids, pictures.labels)
    index = {
        "name": name,
        "transform": plain(transform),
        "ids": [pictures.ids[place] for place in order],
        "labels": [pictures.labels[place] for place in order],
    }
    folder = cache / "prepared" / name / fingerprint(index)[:16]
    if not (folder / "index.json").is_file():
        write_text(folder / "index.json", json.dumps(index))
    chunks = [order[start : start + CHUNK] for start in range(0, min(count or len(order), len(order)), CHUNK)]
    missing = {n: places for n, places in enumerate(chunks) if not _is_prepared(folder, n, pictures, places)}
    begun, done, total = time.monotonic(), 0, sum(map(len, missing.values()))
    for chunk, places in missing.items():
        stamps = [pictures.stamp(place) for place in places]
        readers = [functools.partial(_pixels, pictures, place, transform) for place in places]
        _write_chunk(folder, chunk, readers, stamps)
        done += len(places)
        if tell:
            tell(done, total, (time.monotonic() - begun) / done * (total - done), f"preparing {name}")
    return folder


def prepared_rows(folder: Path) -> int:
    """Return how many samples of a prepared folder have pictures."""
    return sum(len(_read_json(path)["sha256"]) for path in folder.glob("*.json") if path.name != "index.json")


def verify_prepared(folder: Path) -> list[str]:
    """Hash every prepared picture again and return a sentence for each file that is not as it was written."""
    try:
        _read_json(folder / "index.json")
    except UserError as error:
        return [str(error)]
    found = []
    for path in sorted(path for path in folder.glob("*.json") if path.name != "index.json"):
        chunk = int(path.stem) // CHUNK
        try:
            expected = _chunk_digests.__wrapped__(folder, chunk)["sha256"]
            pixels = _chunk_pixels.__wrapped__(folder, chunk)
        except UserError as error:
            found.append(str(error))
            continue
        digests = [image_sha256(torch.from_numpy(row.copy())) for row in pixels]
        wrong = sum(a != b for a, b in zip(expected, digests, strict=True) if a)
        if wrong:
            found.append(
                f"{wrong} of {len(expected)} pictures in {path.with_suffix('.npy')} are not those that were prepared"
            )
        if unreadable := expected.count(""):
            found.append(f"{unreadable} of the pictures of {path} could not be decoded")
    return found


def _pixels(pictures: Pictures, place: int, transform: Transform) -> Tensor | str:
    """Return a picture's pixels, or why there are none."""
    try:
        return transform(pictures.picture(place))
    except UnreadableImage as error:
        return str(error)
    # A header may be sound and the rest not: Pillow decodes, and fails, when pixels are asked for.
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot decode the picture {pictures.ids[place]}: {error}"


def _is_prepared(folder: Path, chunk: int, pictures: Pictures, places: Sequence[int]) -> bool:
    """Say whether a chunk is there and its pictures' files are those that it was made from."""
    path = folder / _digest_name(chunk)
    if not path.is_file():
        return False
    known: list[str] = _read_json(path).get("stamps", [])
    return known == [pictures.stamp(place) for place in places]


def _write_chunk(
    folder: Path, chunk: int, readers: Sequence[Callable[[], Tensor | str]], stamps: Sequence[str]
) -> None:
    import numpy

    # Pillow warns of what it reads all the same, as malformed EXIF: no filter of warnings may decide what is read.
    # Decoding and resizing release Python's lock.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda read: read(), readers))
    sound = [each for each in found if isinstance(each, Tensor)]
    sides = {tuple(each.shape) for each in sound}
    if len(sides) > 1:
        raise UserError(
            f"the pictures below {folder.parent.name} have several sizes, such as {sorted(sides)[:2]}: the protocol's"
            " transform must resize them"
        )
    blank = torch.zeros_like(sound[0]) if sound else torch.zeros(3, 1, 1, dtype=torch.uint8)
    pixels = torch.stack([each if isinstance(each, Tensor) else blank for each in found]).numpy()
    _check_room(folder, pixels.nbytes)
    digests = {
        "sha256": [image_sha256(each) if isinstance(each, Tensor) else "" for each in found],
        "unreadable": {str(row): each for row, each in enumerate(found) if isinstance(each, str)},
        "stamps": list(stamps),
    }
    path = folder / _pixel_name(chunk)
    (folder / _digest_name(chunk)).unlink(missing_ok=True)
    _chunk_pixels.cache_clear()
    _chunk_digests.cache_clear()

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            numpy.save(file, pixels, allow_pickle=False)

    write_whole(path, save)
    write_text(folder / _digest_name(chunk), json.dumps(digests))


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise UserError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, too little for prepared pictures: free some, or"
            " name another folder in VLMBENCH_CACHE; what is prepared already is kept"
        )


@functools.lru_cache(maxsize=32)
def _index(folder: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the ids and labels of a folder, read once: a worker opens the same data set for every shard."""
    index = _read_json(folder / "index.json")
    return tuple(index["ids"]), tuple(index["labels"])


@functools.lru_cache(maxsize=64)
def _chunk_pixels(folder: Path, chunk: int) -> "numpy.memmap[Any, Any]":
    import numpy

    try:
        pixels: numpy.memmap[Any, Any] = numpy.load(folder / _pixel_name(chunk), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(_damaged(folder / _pixel_name(chunk), error)) from error
    return pixels


@functools.lru_cache(maxsize=64)
def _chunk_digests(folder: Path, chunk: int) -> dict[str, Any]:
    path = folder / _digest_name(chunk)
    if not path.is_file():
        raise UserError(
            f"the samples from {chunk * CHUNK} on are not prepared in {folder} on this machine: run the same command"
            " where the data set is, or `vlmbench data prepare` here"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(_damaged(path, error)) from error
    return values


def _damaged(path: Path, error: Exception) -> str:
    return f"the prepared file {path} is missing or damaged ({error}): remove the folder {path.parent} and prepare anew"


def _pixel_name(chunk: int) -> str:
    return f"{chunk * CHUNK:06d}.npy"


def _digest_name(chunk: int) -> str:
    return f"{chunk * CHUNK:06d}.json"
