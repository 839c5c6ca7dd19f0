"""Datasets from a local folder with one sub-folder per class. Images may have any size and format that Pillow reads."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import check_utf8
from robustbench_vlm.datasets.base import Dataset, UnreadableImage

_WORD_NET_ID = re.compile(r"n\d{8}")


class FolderSource:
    """Read the images of the sub-folders `classes` of `path`, resized (bicubic) and cropped to `side` x `side` pixels.

    The label of an image is the index of its sub-folder in `classes`. Some of these sub-folders may be missing.
    """

    def __init__(self, path: str, side: int, classes: Sequence[str]) -> None:
        self._root, self._side = Path(path), side
        there = set(folders(self._root))
        found = [
            (f"{name}/{file}", label)
            for label, name in enumerate(classes)
            if name in there
            for file in files(self._root / name)
        ]
        self.ids = tuple(name for name, _ in found)
        self.labels = tuple(label for _, label in found)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self._root / self.ids[index]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images at B indices as uint8 [B, 3, side, side]; raise UnreadableImage if one is damaged."""
        return torch.stack([self._image(self.path(index)) for index in indices])

    def _image(self, path: Path) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        # Pillow's decoders raise exceptions of many types on damaged files.
        except Exception as error:
            raise UnreadableImage(f"cannot read the image {path}: {error}; repair or remove the file") from error
        square = ImageOps.fit(image, (self._side, self._side), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).contiguous()


def folder_dataset(path: Path, prompt: str, side: int) -> Dataset:
    """Return the dataset of a folder with one sub-folder per class; raise UserError if it has fewer than two."""
    check_utf8(path.resolve().name, path.resolve().parent)
    classes = [name for name in folders(path) if files(path / name)]
    if len(classes) < 2:
        raise UserError(
            f"the folder {path} has {len(classes)} sub-folder(s) with images; at least two are needed: put the images"
            " of each class in a separate sub-folder"
        )
    return Dataset(
        name=path.resolve().name,
        classes=tuple(name.replace("_", " ") for name in classes),
        prompt=prompt,
        source="robustbench_vlm.datasets.image_folder:FolderSource",
        options={"path": str(path.resolve()), "side": side, "classes": classes},
        split="all",
        description="images of a local folder",
    )


def training_folder(path: Path, prompt: str, side: int) -> Dataset:
    """Return the training dataset of a folder with one sub-folder per class.

    If the names of sub-folders are WordNet ids, the dataset is ImageNet-1k. If the folder has a sub-folder "train" with
    class folders, only that part is read. Raises UserError if classes or images are missing.
    """
    root = _training_part(path)
    if any(map(_WORD_NET_ID.fullmatch, folders(root))):
        return imagenet_folder(path, prompt, side)
    return folder_dataset(root, prompt, side)


def imagenet_folder(path: Path, prompt: str, side: int) -> Dataset:
    """Return ImageNet-1k from a folder with one sub-folder per WordNet id, or from its sub-folder "train".

    The dataset always has all 1000 classes in ImageNet's order, even if the folder has images of only some of them.
    Sub-folders with other names are ignored. Images are resized to `side` x `side` pixels. The class names are those
    of AGFT (YuboCui/AGFT 0031a8f, imagenet_classes_names.txt) in lower case, with spaces for "_" and "-". Three names
    are used for two classes each: cardigan, crane and maillot. Raises UserError if the folder lacks classes or images.
    """
    root, names = _training_part(path), imagenet_class_names()
    there = folders(root)
    classes = [name for name in there if name in names]
    if not classes:
        raise UserError(
            f"{root} does not have a class of ImageNet-1k. Its sub-folders are: {_some(there)}. Name the sub-folders by"
            " WordNet id, for example n01440764 (tench)"
        )
    if not any(files(root / name) for name in classes):
        raise UserError(
            f"{root} has folders of {len(classes)} ImageNet classes but no images in them: put the images directly in"
            f" the folder of their class, for example {classes[0]}/one.JPEG"
        )
    return Dataset(
        name="imagenet",
        classes=tuple(names.values()),
        prompt=prompt,
        source="robustbench_vlm.datasets.image_folder:FolderSource",
        options={"path": str(root.resolve()), "side": side, "classes": tuple(names)},
        split="train",
        description="ImageNet-1k from a local folder",
        origin="https://www.image-net.org, class names of YuboCui/AGFT 0031a8f",
    )


def _training_part(path: Path) -> Path:
    # A class may have the name "train". Such a folder has images and no sub-folders.
    part = path / "train"
    return part if part.is_dir() and folders(part) else path


def imagenet_class_names() -> dict[str, str]:
    """Return WordNet id -> AGFT's class name for the 1000 classes of ImageNet, sorted by id (ImageNet's order)."""
    text = Path(__file__).with_name("imagenet_classes.json").read_text(encoding="utf-8")
    names: dict[str, str] = json.loads(text)
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def folders(path: Path) -> list[str]:
    """Return the sorted names of a folder's sub-folders, except hidden ones; raise UserError if it does not exist."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: --images takes a folder with one sub-folder per class")
    with os.scandir(path) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return _checked(found, path)


def files(path: Path) -> list[str]:
    """Return the sorted names of a folder's files, except hidden ones."""
    with os.scandir(path) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    return _checked(found, path)


def _checked(names: list[str], folder: Path) -> list[str]:
    for name in names:
        check_utf8(name, folder)
    return names
