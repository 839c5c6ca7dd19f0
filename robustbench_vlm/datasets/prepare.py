"""Preparing images: decode and resize each once, and write them as `prepared` reads them."""

import functools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text, write_whole
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.datasets.base import UnreadableImage, image_sha256
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.prepared import CHUNK, digest_name, forget, pixel_name, read_json
from robustbench_vlm.datasets.published.base import StoredImages
from robustbench_vlm.datasets.transform import Transform


def prepare(
    name: str,
    images: StoredImages,
    transform: Transform,
    count: int | None,
    cache: Path,
    on_progress: OnProgress = ignore_progress,
) -> Path:
    """Prepare the first `count` samples of the standard order (None: all) and return their folder.

    What is there already is kept, unless the files that it was read from were changed. Raises UserError where the disk
    has no room or cannot be written; images that cannot be decoded are noted, and raise when they are read.
    """
    order = standard_order(images.ids, images.labels)
    index = {
        "name": name,
        "transform": plain(transform),
        "ids": [images.ids[place] for place in order],
        "labels": [images.labels[place] for place in order],
    }
    folder = cache / "prepared" / name / fingerprint(index)[:16]
    if not (folder / "index.json").is_file():
        write_text(folder / "index.json", json.dumps(index))
    chunks = [order[start : start + CHUNK] for start in range(0, min(count or len(order), len(order)), CHUNK)]
    missing = {n: places for n, places in enumerate(chunks) if not _is_prepared(folder, n, images, places)}
    begun, done, total = time.monotonic(), 0, sum(map(len, missing.values()))
    for chunk, places in missing.items():
        stamps = [images.stamp(place) for place in places]
        readers = [functools.partial(_pixels, images, place, transform) for place in places]
        _write_chunk(folder, chunk, readers, stamps)
        done += len(places)
        left = (time.monotonic() - begun) / done * (total - done)
        on_progress(Progress(done, total, left, f"preparing {name}"))
    return folder


def _pixels(images: StoredImages, place: int, transform: Transform) -> Tensor | str:
    """Return an image's pixels, or why there are none."""
    try:
        return transform(images.image(place))
    except UnreadableImage as error:
        return str(error)
    # A header may be sound and the rest not: Pillow decodes, and fails, when pixels are asked for.
    except (OSError, ValueError, SyntaxError) as error:
        return f"cannot decode the image {images.ids[place]}: {error}"


def _is_prepared(folder: Path, chunk: int, images: StoredImages, places: Sequence[int]) -> bool:
    """Say whether a chunk is there and its images' files are those that it was made from."""
    path = folder / digest_name(chunk)
    if not path.is_file():
        return False
    known: list[str] = read_json(path).get("stamps", [])
    return known == [images.stamp(place) for place in places]


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
            f"the images below {folder.parent.name} have several sizes, such as {sorted(sides)[:2]}: the protocol's"
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
    path = folder / pixel_name(chunk)
    (folder / digest_name(chunk)).unlink(missing_ok=True)
    forget()

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            numpy.save(file, pixels, allow_pickle=False)

    write_whole(path, save)
    write_text(folder / digest_name(chunk), json.dumps(digests))


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise UserError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, too little for prepared images: free some, or"
            " name another folder in VLMBENCH_CACHE; what is prepared already is kept"
        )
