"""Read the image files and list files of datasets. Every error names the damaged or missing file and the next step."""

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
"""File name suffixes of images, as in torchvision's ImageFolder. Other files in a class folder are not samples."""


@dataclass(frozen=True)
class ImageFiles:
    """N images in separate files, at `paths` below `root`."""

    root: Path
    ids: Sequence[str]
    labels: Sequence[int]
    """The class index of each of the N images."""
    paths: Sequence[str]

    def image(self, index: int) -> "Image":
        """Return an image in its stored mode and size; raise UnreadableImage if it cannot be decoded."""
        path = self.root / self.paths[index]
        return decode(path, str(path))

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the image file, as one text."""
        return stamp_of(self.root / self.paths[index])


def list_images(root: Path, samples: Sequence[tuple[str, int]]) -> ImageFiles:
    """Return the images in a list of samples (path below `root`, label).

    Raises UserError if a path leads out of `root`, is not UTF-8, or occurs twice.
    """
    paths, labels = tuple(path for path, _ in samples), tuple(label for _, label in samples)
    for path in paths:
        check_utf8(path, root)
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(
                f"the list of images of {root} has the path {path!r}, which is outside this folder: fetch the list"
                " again"
            )
    return ImageFiles(root, check_unique(paths, root), labels, paths)


def check_unique(ids: Sequence[str], where: Path) -> tuple[str, ...]:
    """Return the sample ids as a tuple. Raises UserError if two ids are equal."""
    if len(set(ids)) != len(ids):
        twice = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise UserError(f"{where} has two samples with the id {twice!r}: its list is damaged; fetch the dataset again")
    return tuple(ids)


def decode(file: Path | IO[bytes], name: str) -> "Image":
    """Return a decoded image in its stored mode and size. EXIF data are ignored.

    The format is recognised from the content of the file, not from its name.

    `name` is the name of the image in the error message. Raises UnreadableImage if the file is missing, truncated or
    not an image.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    # Pillow's decoders raise many types of exceptions if a file is damaged.
    except Exception as error:
        raise UnreadableImage(f"cannot read the image {name}: {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise MissingData if the file `path` does not exist, and UserError if the `with` block fails to read it."""
    if not path.exists():
        raise MissingData(f"there is no {path}")
    try:
        yield
    except UserError:
        raise
    # Every parser raises its own types of exceptions, so all types are converted to a UserError.
    except Exception as error:
        raise UserError(
            f"cannot read {path} ({path.stat().st_size} bytes): {type(error).__name__}: {error}; the file may be"
            " truncated, or a web page that was saved under this name: remove it and fetch it again"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file without surrounding whitespace."""
    with reading(path):
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def existing_folder(root: Path, *names: str) -> Path:
    """Return the first sub-folder in `names` that exists in `root`; raise MissingData if none of them exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise MissingData(f"there is no folder {' or '.join(str(root / name) for name in names)}")
