"""Base types of the published datasets. Images keep their stored size, and classes keep their original names."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class MissingData(UserError):
    """Raised if files of a dataset are missing. The message names the missing files and the next step for the user."""


class StoredImages(Protocol):
    """The N labelled images of one split, as stored on disk. `image` decodes one image."""

    @property
    def ids(self) -> Sequence[str]:
        """The unique ids of the samples. The ids do not depend on the machine or on the order of the files.

        An id is the path of the image file below the dataset's folder, for example "test/cat/0001.jpg". If one file has
        all images, the id is the index in the official split with at least five digits, for example "00017".
        """
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each sample: an index of `class_names`."""
        ...

    def image(self, index: int) -> "Image":
        """Return an image in its stored mode and size; raise UnreadableImage if it cannot be decoded."""
        ...

    def stamp(self, index: int) -> str:
        """Return a text that changes if the file of the image changes, for example the result of `stamp_of`."""
        ...


def stamp_of(path: Path) -> str:
    """Return the size and modification time of a file as one text. Return "" if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True)
class DownloadSource:
    """A place from which a dataset can be downloaded: a host and its files of the dataset."""

    kind: Literal["hub", "original"]
    """"hub" for tar files (shards) on the Hugging Face Hub, "original" for the archives that torchvision downloads."""
    name: str
    """The repository OWNER/NAME on the Hub, or the name of a class in torchvision.datasets."""
    download_bytes: int
    """Approximate size of the download in bytes. 0 means that the size is unknown."""
    reason: str
    """The reason for the position of this source in `PublishedDataset.sources`. The documentation shows this reason."""
    host: str = ""
    """An address on the host of the original archives. "" if the source is on the Hub."""
    split: str = ""
    """A description of the samples in these files if they differ from the samples of `PublishedDataset.split`. "" if
    they are the same samples.
    """


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset: its reader, folder, split, size, downloads and licence."""

    name: str
    title: str
    """The name that papers use for the dataset."""
    reader: str
    """The import path "module:name" of a function that takes the dataset's folder and returns StoredImages.

    The function raises MissingData if files are missing."""
    folder: str
    """Name of the dataset's folder below the data root. torchvision uses the same name."""
    split: str
    """Name of the split that is evaluated."""
    samples: int
    """Number of samples of the complete split. 0 means that the number is unknown."""
    native: bool = False
    """True if all images have one small size. The images are then attacked at this size."""
    sources: tuple[DownloadSource, ...] = ()
    """The download sources in the order in which they are tried. () if the dataset can only be downloaded by hand."""
    by_hand_bytes: int = 0
    """Approximate size in bytes of a download by hand. 0 means that the size is unknown, or that the first entry of
    `sources` states the size.
    """
    licensed: bool = False
    """True if users must accept terms before a download. This package never downloads such a dataset."""
    by_hand: str = ""
    """Instructions for users if this package cannot download the dataset."""
    licence: str = ""
    """Licence of the images, in words."""
    origin: str = ""
    """Address of the dataset's page."""

    @property
    def hub(self) -> DownloadSource | None:
        """The source on the Hugging Face Hub, or None if the dataset has no such source."""
        return next((source for source in self.sources if source.kind == "hub"), None)

    @property
    def download_bytes(self) -> int:
        """Approximate size in bytes of a download from the first source, or by hand. 0 means an unknown size."""
        return self.by_hand_bytes or (self.sources[0].download_bytes if self.sources else 0)

    @property
    def fetchable(self) -> bool:
        """True if this package can download the dataset and the dataset's terms allow the download."""
        return bool(self.sources) and not self.licensed

    def read(self, folder: Path) -> StoredImages:
        """Return the images of the dataset in a folder; raise MissingData if files are missing."""
        module, _, name = self.reader.partition(":")
        images: StoredImages = getattr(importlib.import_module(module), name)(folder)
        return images
