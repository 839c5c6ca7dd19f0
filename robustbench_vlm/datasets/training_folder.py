"""Folders to train on: ImageNet as torchvision lays it out, and any other folder with one sub-folder a class."""

import json
import re
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import files, folder_dataset, folders

_WORD_NET_ID = re.compile(r"n\d{8}")


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
    out. Images are `side` x `side`. Raises UserError where no class, or no picture of one, is there. The class names
    are AGFT's (YuboCui/AGFT 0031a8f, imagenet_classes_names.txt), prepared as its code does: lower case, blanks for
    "_" and "-". Three of them name two classes each: cardigan, crane and maillot.
    """
    root, names = _training_part(path), class_names()
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


def class_names() -> dict[str, str]:
    """Return AGFT's name of each WordNet id, in the order of ImageNet's classes, which is that of the ids."""
    text = Path(__file__).with_name("imagenet_classes.json").read_text(encoding="utf-8")
    names: dict[str, str] = json.loads(text)
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
