"""A person's own images: one folder a class, any size and format that Pillow reads."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import check_utf8
from robustbench_vlm.datasets.base import Dataset, UnreadableImage


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
        return torch.stack([self._picture(self._root / self.ids[index]) for index in indices])

    def _picture(self, path: Path) -> Tensor:
        import numpy
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
        # Pillow's decoders raise almost anything on broken files.
        except Exception as error:
            raise UnreadableImage(
                f"cannot read the image {path}: {error}; mend or remove it, or let `vlmbench run` go on without it by"
                " --skip-unreadable"
            ) from error
        square = ImageOps.fit(picture, (self._side, self._side), Image.Resampling.BICUBIC)
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
