"""Prepare the images of a dataset: decode and resize them once, and store the pixels for later runs."""

import contextlib
import functools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import exclusive_lock, write_text, write_whole
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.datasets.base import UnreadableImage, image_sha256
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.prepared import CHUNK, digest_name, forget, pixel_name, read_json, stored_digests
from robustbench_vlm.datasets.published.base import StoredImages
from robustbench_vlm.datasets.transform import SquareFit, Transform

if TYPE_CHECKING:
    from torch import Tensor


def prepare(
    name: str,
    images: StoredImages,
    transform: Transform | SquareFit,
    count: int | None,
    cache: Path,
    on_progress: OnProgress = ignore_progress,
    *,
    by_content: bool = False,
) -> Path:
    """Prepare the first `count` samples of the standard order and return the folder that contains their pixels.

    If `count` is None, all samples are prepared. A prepared sample is used again if its image file has not changed. To
    detect changes, a text (the stamp) is stored for each image file, for example its sha256.

    If `by_content` is true, the name of the folder depends on the stamps. Changed images are then prepared in a new
    folder, and an evaluation that is already running still reads the old pixels.

    Several processes may prepare the same dataset at the same time. The pixels are stored in chunks of samples. Only
    one process at a time writes a chunk, and no process removes a complete chunk.

    An image that cannot be decoded does not raise an error here. `PreparedSource.read` raises UnreadableImage for it.
    Raises UserError if the disk is full or read-only.
    """
    order = standard_order(images.ids, images.labels)
    index = {
        "name": name,
        "transform": plain(transform),
        "ids": [images.ids[place] for place in order],
        "labels": [images.labels[place] for place in order],
    }
    needed = len(order) if count is None else min(-(-count // CHUNK) * CHUNK, len(order))
    if by_content:
        index["files"] = fingerprint(_stamps(name, images, order[:needed], on_progress))
    folder = cache / ("prepared_folders" if by_content else "prepared") / name / fingerprint(index)[:16]
    if not (folder / "index.json").is_file():
        write_text(folder / "index.json", json.dumps(index))
    chunks = [order[start : start + CHUNK] for start in range(0, needed, CHUNK)]
    missing = {n: places for n, places in enumerate(chunks) if not _is_prepared(folder, n, images, places)}
    begun, done, total = time.monotonic(), 0, sum(map(len, missing.values()))
    for chunk, places in missing.items():
        with _locked(folder):
            # Check again under the lock, because another process may have written the chunk in the meantime.
            if not _is_prepared(folder, chunk, images, places):
                stamps = [images.stamp(place) for place in places]
                readers = [functools.partial(_pixels, images, place, transform) for place in places]
                _write_chunk(folder, chunk, readers, stamps)
        done += len(places)
        left = (time.monotonic() - begun) / done * (total - done)
        on_progress(Progress(done, total, left, f"preparing {name}"))
    # Clear this process's cache of chunks, because other processes may have written some of the chunks again.
    forget()
    return folder


def _stamps(name: str, images: StoredImages, places: Sequence[int], on_progress: OnProgress) -> list[str]:
    """Return the stamp of each image, which is a text that changes if the image file changes.

    Threads compute the stamps, because a stamp may be a digest of the whole image file.
    """
    found: list[str] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(places), CHUNK):
            found += threads.map(images.stamp, places[start : start + CHUNK])
            if len(places) > CHUNK:
                on_progress(Progress(len(found), len(places), label=f"reading {name}"))
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a prepared folder, so that only one process at a time writes into it.

    Raises UserError if the folder cannot be written.
    """
    with exclusive_lock(folder / ".lock", wait=True):
        yield


def _pixels(images: StoredImages, place: int, transform: Transform | SquareFit) -> "Tensor | str":
    """Return an image's pixels, uint8 [3, H, W], or the reason why it cannot be decoded."""
    try:
        return transform(images.image(place))
    except UnreadableImage as error:
        return str(error)
    # Pillow may open a damaged file without an error and raise the error later, when the pixels are decoded.
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot decode the image {images.ids[place]}: {error}"


def _is_prepared(folder: Path, chunk: int, images: StoredImages, places: Sequence[int]) -> bool:
    """Return whether the pixels of a chunk are stored and its image files have not changed since they were stored."""
    path = folder / digest_name(chunk)
    if not path.is_file() or not (folder / pixel_name(chunk)).is_file():
        return False
    try:
        known: list[str] = read_json(path, "stamps")["stamps"]
    except UserError:
        return False
    return known == [images.stamp(place) for place in places]


def _write_chunk(
    folder: Path, chunk: int, readers: "Sequence[Callable[[], Tensor | str]]", stamps: Sequence[str]
) -> None:
    import numpy
    import torch
    from torch import Tensor

    # Pillow warns about some files that it can read, for example files with malformed EXIF data. These images must be
    # read even if a user turns warnings into errors. Threads are faster than a loop, because decoding and resizing
    # release the GIL.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda read: read(), readers))
    sound = [each for each in found if isinstance(each, Tensor)]
    sides = {tuple(each.shape) for each in sound}
    if len(sides) > 1:
        raise UserError(
            f"the images of {folder.parent.name} have different sizes, for example {sorted(sides)[:2]}, and the"
            " transform of the protocol does not resize them: use a protocol that resizes images"
        )
    blank = torch.zeros_like(sound[0]) if sound else torch.zeros(3, 1, 1, dtype=torch.uint8)
    pixels = torch.stack([each if isinstance(each, Tensor) else blank for each in found]).numpy()
    _check_room(folder, pixels.nbytes)
    sha256 = [image_sha256(each) if isinstance(each, Tensor) else "" for each in found]
    digests = {
        "sha256": sha256,
        "unreadable": {str(row): each for row, each in enumerate(found) if isinstance(each, str)},
        "stamps": list(stamps),
    }

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            numpy.save(file, pixels, allow_pickle=False)

    # If the file already has these pixels, it is not written again, because other processes may be reading it.
    if not _has_pixels(folder, chunk, sha256):
        write_whole(folder / pixel_name(chunk), save)
    # The JSON file is written last. Until then, an old JSON file describes the earlier image files, so the chunk counts
    # as incomplete.
    write_text(folder / digest_name(chunk), json.dumps(digests))


def _has_pixels(folder: Path, chunk: int, digests: Sequence[str]) -> bool:
    """Return whether the stored pixels of a chunk have the given sha256 digests."""
    try:
        stored = stored_digests(folder, chunk)
    except UserError:
        return False
    return len(stored) == len(digests) and all(a == b for a, b in zip(stored, digests, strict=True) if b)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise UserError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, and the prepared images need"
            f" {2 * size / 2**20:.0f} MiB: free some space, or set VLMBENCH_CACHE to a folder on a larger disk; samples"
            " that are already prepared are kept"
        )
