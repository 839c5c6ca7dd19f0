"""Datasets from a local folder with one sub-folder per class. Images may have any size and format that Pillow reads."""

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import check_utf8, sha256_of
from robustbench_vlm.datasets.base import Dataset, UnreadableImage
from robustbench_vlm.datasets.listing import files, files_below, folders
from robustbench_vlm.datasets.published.image_files import SUFFIXES, decode
from robustbench_vlm.datasets.transform import SquareFit, Transform

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FOLDER_SOURCE = "robustbench_vlm.datasets.image_folder:FolderSource"
_WORD_NET_ID = re.compile(r"n\d{8}")


class FolderImages:
    """The N images of a folder with one sub-folder per class. Images keep their stored size.

    `classes` has the names of the sub-folders. The label of an image is the index of its sub-folder in `classes`. Some
    of these sub-folders may be missing. A sub-folder may have folders below it, and their images have the same label.
    """

    def __init__(self, root: Path, classes: Sequence[str]) -> None:
        self._root = root
        there = set(folders(root))
        found = [
            (f"{name}/{file}", label)
            for label, name in enumerate(classes)
            if name in there
            for file in files_below(root / name)
        ]
        self.ids = tuple(name for name, _ in found)
        self.labels = tuple(label for _, label in found)
        self._digests: dict[int, str] = {}

    def image(self, index: int) -> "Image":
        """Return an image in its stored mode and size; raise UnreadableImage if it cannot be decoded."""
        return decode(self.path(index), str(self.path(index)))

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self._root / self.ids[index]

    def stamp(self, index: int) -> str:
        """Return the sha256 of the image file, or "" if the file cannot be read."""
        if index not in self._digests:
            try:
                self._digests[index] = sha256_of(self.path(index))
            except OSError:
                self._digests[index] = ""
        return self._digests[index]


class FolderSource:
    """A source that reads the images of a folder as `side` x `side` pixels.

    `transform` resizes and crops the images. If `transform` is None, `SquareFit` is used. `classes` has the names of
    the sub-folders of `path`. The label of an image is the index of its sub-folder in `classes`.
    """

    def __init__(self, path: str, side: int, classes: Sequence[str], transform: Transform | None = None) -> None:
        self._images, self._fit = FolderImages(Path(path), classes), transform or SquareFit(side)
        self.ids, self.labels = self._images.ids, self._images.labels

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self._images.path(index)

    def read(self, indices: Sequence[int]) -> "Tensor":
        """Return the images at B indices as uint8 [B, 3, side, side]; raise UnreadableImage if one is damaged."""
        import torch

        # Pillow warns about some images that it can read. These images must be read even if a user
        # turns warnings into errors.
        with warnings.catch_warnings(action="ignore"):
            return torch.stack([self._image(index) for index in indices])

    def _image(self, index: int) -> "Tensor":
        try:
            return self._fit(self._images.image(index))
        except UnreadableImage as error:
            reason = str(error)
        except (OSError, ValueError, SyntaxError) as error:
            reason = f"cannot decode the image {self._images.ids[index]}: {error}"
        raise UnreadableImage(f"{reason}; repair or remove the file")


def folder_dataset(path: Path, prompt: str, side: int) -> Dataset:
    """Return the dataset in a folder with one sub-folder per class. Raises UserError for fewer than two classes."""
    check_utf8(path.resolve().name, path.resolve().parent)
    counts = {name: len(files_below(path / name)) for name in folders(path)}
    classes, empty = [name for name, count in counts.items() if count], [name for name in counts if not counts[name]]
    if len(classes) < 2:
        raise UserError(
            f"the folder {path} has {len(classes)} sub-folder(s) with images; at least two are needed: put the images"
            " of each class in a separate sub-folder"
        )
    if empty:
        raise UserError(
            f"{len(empty)} sub-folder(s) of {path} contain nothing that could be an image: {_some(empty)}. Each"
            " sub-folder is a class: add images to it, or remove it"
        )
    if stray := [name for name in files(path) if name.lower().endswith(SUFFIXES)]:
        raise UserError(
            f"{len(stray)} image(s) of {path} are not in the sub-folder of a class: {_some(stray)}. Move or remove them"
        )
    return Dataset(
        name=path.resolve().name,
        classes=tuple(name.replace("_", " ") for name in classes),
        prompt=prompt,
        source=FOLDER_SOURCE,
        options={"path": str(path.resolve()), "side": side, "classes": classes},
        split="all",
        description="images of a local folder",
    )


def training_folder(path: Path, prompt: str, side: int, transform: Transform | None = None) -> Dataset:
    """Return the training dataset of a folder with one sub-folder per class.

    If the folder has a sub-folder "train" with class folders, only "train" is read. If the name of a class folder is a
    WordNet id such as "n01440764", the result is ImageNet-1k with all 1000 classes. `transform` converts images to
    `side` x `side` pixels. If `transform` is None, `SquareFit` is used. Raises UserError if classes or images are
    missing.
    """
    root = _training_part(path)
    is_imagenet = any(map(_WORD_NET_ID.fullmatch, folders(root)))
    dataset = imagenet_folder(path, prompt, side) if is_imagenet else folder_dataset(root, prompt, side)
    if transform is None:
        return dataset
    return dataclasses.replace(dataset, options={**dataset.options, "transform": transform})


def imagenet_folder(path: Path, prompt: str, side: int) -> Dataset:
    """Return ImageNet-1k from a folder with one sub-folder per WordNet id, or from its sub-folder "train".

    The dataset always has all 1000 classes in ImageNet's order, even if the folder has images of only some of them.
    Sub-folders with other names are ignored. Images are resized to `side` x `side` pixels. The class names come from
    AGFT (YuboCui/AGFT 0031a8f, imagenet_classes_names.txt). The names are in lower case, with spaces for "_" and "-".
    Three names are used for two classes each: cardigan, crane and maillot. Raises UserError if classes or images are
    missing.
    """
    root, names = _training_part(path), imagenet_class_names()
    there = folders(root)
    classes = [name for name in there if name in names]
    if not classes:
        raise UserError(
            f"{root} does not have a class of ImageNet-1k. Its sub-folders are: {_some(there)}. Name the sub-folders by"
            " WordNet id, for example n01440764 (tench)"
        )
    if not any(files_below(root / name) for name in classes):
        raise UserError(
            f"{root} has folders of {len(classes)} ImageNet classes, but these folders do not contain images: put"
            f" images in the folder of their class, for example {classes[0]}/one.JPEG"
        )
    return Dataset(
        name="imagenet",
        classes=tuple(names.values()),
        prompt=prompt,
        source=FOLDER_SOURCE,
        options={"path": str(root.resolve()), "side": side, "classes": tuple(names)},
        split="train",
        description="ImageNet-1k from a local folder",
        origin="https://www.image-net.org, class names of YuboCui/AGFT 0031a8f",
    )


def _training_part(path: Path) -> Path:
    # A folder "train" that contains images and no sub-folders is the folder of a class with the name "train".
    part = path / "train"
    return part if part.is_dir() and folders(part) else path


def imagenet_class_names() -> dict[str, str]:
    """Return a mapping from WordNet id to class name for the 1000 classes of ImageNet.

    The mapping is sorted by id, which is the order of ImageNet's labels. The class names come from AGFT.
    """
    text = Path(__file__).with_name("imagenet_classes.json").read_text(encoding="utf-8")
    names: dict[str, str] = json.loads(text)
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
