"""Datasets from a local folder: one sub-folder per class, any image size and format that Pillow reads."""

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
    """The images of the sub-folders `classes` of `path`, resized (bicubic) and centre-cropped to `side` x `side`.

    An image's label is its folder's place among `classes`, of which some may be missing.
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

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return images, uint8 (B, 3, side, side)."""
        return torch.stack([self._image(self._root / self.ids[index]) for index in indices])

    def _image(self, path: Path) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        # Pillow's decoders raise almost anything on broken files.
        except Exception as error:
            raise UnreadableImage(
                f"cannot read the image {path}: {error}; mend or remove it, or let `vlmbench run` go on without it by"
                " --skip-unreadable"
            ) from error
        square = ImageOps.fit(image, (self._side, self._side), Image.Resampling.BICUBIC)
        return torch.from_numpy(numpy.array(square)).permute(2, 0, 1).contiguous()


def folder_dataset(path: Path, prompt: str, side: int) -> Dataset:
    """Return the dataset of a folder with one sub-folder a class; raise UserError where it is none."""
    check_utf8(path.resolve().name, path.resolve().parent)
    classes = [name for name in folders(path) if files(path / name)]
    if len(classes) < 2:
        raise UserError(f"{path} holds {len(classes)} sub-folder(s) with images: it takes two or more, one a class")
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
    """Return a folder's dataset for training: ImageNet where sub-folders are WordNet ids, else one class a folder.

    Sub-folders of "train" are taken where there is one. Raises UserError where the folder is none of this.
    """
    root = _training_part(path)
    if any(map(_WORD_NET_ID.fullmatch, folders(root))):
        return imagenet_folder(path, prompt, side)
    return folder_dataset(root, prompt, side)


def imagenet_folder(path: Path, prompt: str, side: int) -> Dataset:
    """Return ImageNet-1k from a folder with one sub-folder a WordNet id, or from the folder "train" in it.

    All 1000 classes are there, in ImageNet's order, whatever part of them the folder holds; other sub-folders are left
    out. Images are `side` x `side`. Raises UserError where no class, or no image of one, is there. The class names
    are AGFT's (YuboCui/AGFT 0031a8f, imagenet_classes_names.txt), prepared as its code does: lower case, blanks for
    "_" and "-". Three of them name two classes each: cardigan, crane and maillot.
    """
    root, names = _training_part(path), imagenet_class_names()
    there = folders(root)
    classes = [name for name in there if name in names]
    if not classes:
        raise UserError(
            f"{root} has no class of ImageNet-1k: it takes sub-folders named by WordNet id, as n01440764 (tench), and"
            f" has {_some(there)}"
        )
    if not any(files(root / name) for name in classes):
        raise UserError(
            f"{root} has {len(classes)} of ImageNet's classes and no images: they must lie directly in the folder of"
            f" their class, as {classes[0]}/one.JPEG"
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
    # A class may itself be named "train": then it has images and no sub-folders.
    part = path / "train"
    return part if part.is_dir() and folders(part) else path


def imagenet_class_names() -> dict[str, str]:
    """Return AGFT's name of each WordNet id, in the order of ImageNet's classes, which is that of the ids."""
    text = Path(__file__).with_name("imagenet_classes.json").read_text(encoding="utf-8")
    names: dict[str, str] = json.loads(text)
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def folders(path: Path) -> list[str]:
    """Return the names of a folder's sub-folders, sorted, without hidden ones; raise UserError where it is missing."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: --images takes a folder with one sub-folder a class")
    with os.scandir(path) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return _checked(found, path)


def files(path: Path) -> list[str]:
    """Return the names of a folder's files, sorted, without hidden ones; what scandir knows costs no stat a file."""
    with os.scandir(path) as entries:
        found = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    return _checked(found, path)


def _checked(names: list[str], folder: Path) -> list[str]:
    for name in names:
        check_utf8(name, folder)
    return names
