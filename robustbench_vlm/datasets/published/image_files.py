"""Images and lists as they are stored: whatever is broken is told by name of the file, with what to do."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import check_utf8
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.published.base import MissingData, stamp_of

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of images, those of torchvision's ImageFolder: what else lies in a folder is no sample."""


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files of their own, at `paths` below `root`."""

    root: Path
    ids: Sequence[str]
    labels: Sequence[int]
    paths: Sequence[str]

    def image(self, index: int) -> "Image":
        """Return an image as stored."""
        path = self.root / self.paths[index]
        return decode(path, str(path))

    def stamp(self, index: int) -> str:
        """Return that of the image's file."""
        return stamp_of(self.root / self.paths[index])


def list_images(root: Path, samples: Sequence[tuple[str, int]]) -> ImageFiles:
    """Return the images of a list of paths below `root` and labels.

    Raises UserError for a path that leads out, or is not UTF-8.
    """
    paths, labels = tuple(path for path, _ in samples), tuple(label for _, label in samples)
    for path in paths:
        check_utf8(path, root)
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(f"a list of {root} names the image {path!r}, which lies outside: fetch the list anew")
    return ImageFiles(root, check_unique(paths, root), labels, paths)


def check_unique(ids: Sequence[str], where: Path) -> tuple[str, ...]:
    """Return the samples' names; raise UserError where two are equal."""
    if len(set(ids)) != len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise UserError(f"{where} has the sample {twice!r} twice: its list is damaged; fetch the dataset anew")
    return tuple(ids)


def decode(file: Path | IO[bytes], name: str) -> "Image":
    """Return an image by what it is, not by how its file is called, in its own mode and size, not turned by EXIF.

    Raises UnreadableImage, with `name`, where it is missing, cut off, or no image.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    # Pillow's decoders raise almost anything on broken files.
    except Exception as error:
        raise UnreadableImage(f"cannot read the image {name}: {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file of a dataset is missing (MissingData) or is not what its name says (UserError)."""
    if not path.exists():
        raise MissingData(f"there is no {path}")
    try:
        yield
    except UserError:
        raise
    # Each format's parser has its own exceptions.
    except Exception as error:
        raise UserError(
            f"cannot read {path} ({path.stat().st_size} bytes): {type(error).__name__}: {error}; it may be cut off, or"
            " a web page saved in its place: remove it and fetch it anew"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones."""
    with reading(path):
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def existing_folder(root: Path, *names: str) -> Path:
    """Return the first of the sub-folders `names` that is there; raise MissingData where none is."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise MissingData(f"there is no folder {' or '.join(str(root / name) for name in names)}")


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below `top`, as a path from there, with the names of its files, all sorted."""
    for place, _, names in sorted(os.walk(top, followlinks=True)):
        yield Path(place).relative_to(top).as_posix(), sorted(names)
