"""The base types of published datasets, as their authors release them: nothing is resized or renamed here."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class MissingData(UserError):
    """ImageFiles of a dataset are not there: the message says which, where they were looked for and what to do."""


class StoredImages(Protocol):
    """The labelled images of one split, as stored; nothing is decoded before `image` is called."""

    @property
    def ids(self) -> Sequence[str]:
        """The samples' names, all different; they never change.

        The path of the file below the dataset's folder ("test/cat/0001.jpg"), or the place in the official split,
        five digits or more, if one file holds all pixels ("00017").
        """
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Each sample's class: its place in `class_names`."""
        ...

    def image(self, index: int) -> "Image":
        """Return an image as stored, of any mode and size; raise UnreadableImage where it cannot be decoded."""
        ...

    def stamp(self, index: int) -> str:
        """Return a text that changes when the file of an image changes, see `stamp_of`."""
        ...


def stamp_of(path: Path) -> str:
    """Return a file's size and modification time as one text; "" if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset: the reader of its split, its folder and its download."""

    name: str
    title: str
    """The name that papers use."""
    reader: str
    """ "module:callable"; called with the dataset's folder it returns StoredImages or raises MissingData."""
    folder: str
    """Folder below the data root, the one that torchvision uses."""
    split: str
    samples: int
    """Number of samples of the whole split; 0 if unknown."""
    native: bool = False
    """True if all images have one small size; then they are attacked at that size."""
    download_bytes: int = 0
    """Approximate size of the download in bytes; 0 if unknown."""
    torchvision: str = ""
    """Class of torchvision.datasets whose download still works; "" if there is none."""
    hub: str = ""
    """Dataset of the Hugging Face hub with its tar shards; "" if there is none."""
    hub_split: str = ""
    """Split of the hub's shards if it differs from `split`; the shards then hold other samples of the dataset."""
    licensed: bool = False
    """True if a person must agree to terms first: no program fetches it, but a local copy is read."""
    by_hand: str = ""
    """Instructions if no download works, such as a licence to accept or a page to visit."""
    licence: str = ""
    origin: str = ""

    @property
    def fetchable(self) -> bool:
        """True if a program may and can fetch it."""
        return bool(self.torchvision or self.hub) and not self.licensed

    def read(self, folder: Path) -> StoredImages:
        """Return the images of the dataset whose folder this is; raise MissingData if files are missing."""
        module, _, name = self.reader.partition(":")
        images: StoredImages = getattr(importlib.import_module(module), name)(folder)
        return images
