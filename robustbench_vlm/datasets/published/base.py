"""What an original is: a published dataset as its authors give it, before anything is resized or renamed."""

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
        """The samples' names, all different, the same for ever.

        The path of the file below the dataset's folder ("test/cat/0001.jpg"), or the place in the official split,
        five digits or more, where pixels lie in one file ("00017").
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
        """Return what is another text once the file that holds an image was changed, see `stamp_of`."""
        ...


def stamp_of(path: Path) -> str:
    """Return a file's size and time of change as one text, "" where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset: how its split is read, where it lies and how one comes by it."""

    name: str
    title: str
    """The name that papers use."""
    reader: str
    """ "module:callable"; called with the dataset's folder it gives Images or raises MissingData."""
    folder: str
    """Where torchvision puts it below the data root."""
    split: str
    samples: int
    """How many samples the whole split has; 0 where that is not known."""
    native: bool = False
    """Whether all images have one small size, at which they are attacked."""
    download_bytes: int = 0
    """About how much there is to download; 0 where that is not known."""
    torchvision: str = ""
    """The class of torchvision.datasets whose download still works; "" where there is none."""
    hub: str = ""
    """The dataset of the Hugging Face hub that holds it as tar shards; "" where there is none."""
    hub_split: str = ""
    """The split of the hub's shards where it is another one; they are another sample of the dataset then."""
    licensed: bool = False
    """Whether a person must agree to terms first: then no program fetches it, and what is there is read."""
    by_hand: str = ""
    """What a person has to do where no download works: a licence to agree to, a page to go to."""
    licence: str = ""
    origin: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether a program may and can fetch it."""
        return bool(self.torchvision or self.hub) and not self.licensed

    def read(self, folder: Path) -> StoredImages:
        """Return the images of the dataset whose folder this is; raise MissingData where files are absent."""
        module, _, name = self.reader.partition(":")
        images: StoredImages = getattr(importlib.import_module(module), name)(folder)
        return images
