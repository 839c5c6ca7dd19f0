"""Readers of datasets with one folder per class: Caltech, EuroSAT, Country211, ImageNet and its variants."""

import re
from collections.abc import Iterator
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.listing import files, folders, walk
from robustbench_vlm.datasets.published.base import MissingData, StoredImages
from robustbench_vlm.datasets.published.class_lists import Labels, class_names
from robustbench_vlm.datasets.published.image_files import (
    SUFFIXES,
    ImageFiles,
    check_unique,
    existing_folder,
    list_images,
    read_lines,
    reading,
)

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


def caltech101(root: Path) -> StoredImages:
    """Read all images of Caltech101 except its background class: "101_ObjectCategories/<class>/image_0001.jpg"."""
    return _classes(existing_folder(root, "101_ObjectCategories"), "caltech101", left_out=("BACKGROUND_Google",))


def caltech256(root: Path) -> StoredImages:
    """Read all images of Caltech256 with its clutter class: "256_ObjectCategories/001.ak47/001_0001.jpg"."""
    return _classes(existing_folder(root, "256_ObjectCategories"), "caltech256")


def eurosat(root: Path) -> StoredImages:
    """Read all RGB images of EuroSAT: "2750/<class>/<class>_1.jpg"."""
    return _classes(existing_folder(root, "2750"), "eurosat")


def country211(root: Path) -> StoredImages:
    """Read the test split of Country211: "test/<country code>/1.jpg"."""
    return _classes(existing_folder(root, "test"), "country211")


def imagenet_r(root: Path) -> StoredImages:
    """Read all images of ImageNet-R: "<WordNet id>/art_0.jpg"."""
    return _classes(existing_folder(root, "imagenet-r", "."), "imagenet-r")


def imagenet_sketch(root: Path) -> StoredImages:
    """Read all images of ImageNet-Sketch: "<WordNet id>/sketch_0.JPEG", possibly in a folder "sketch"."""
    return _classes(existing_folder(root, "sketch", "."), "imagenet-sketch")


def _classes(root: Path, name: str, left_out: tuple[str, ...] = ()) -> ImageFiles:
    """Return the images below the folder of each class, sorted by class folder and path."""
    labels = Labels(name)
    samples = [
        (f"{raw}/{path}", labels.of(raw, root))
        for raw in folders(root)
        if raw not in left_out
        for path in _images(root / raw)
    ]
    if not samples:
        raise MissingData(f"{root} lacks class folders with images; expected folders such as {class_names(name)[0]}")
    return list_images(root, samples)


def _images(top: Path) -> Iterator[str]:
    """Yield the paths of the images of a class, including sub-folders, in torchvision's order."""
    for place, names in walk(top):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield name if place == "." else f"{place}/{name}"


def imagenet(root: Path) -> StoredImages:
    """Read the validation split of ImageNet: "val/<WordNet id>/ILSVRC2012_val_00000001.JPEG", or all files in "val".

    If the images are directly in "val", the labels are read from the development kit in "ILSVRC2012_devkit_t12/data".
    The id of a sample is its file name.
    """
    top = existing_folder(root, "val")
    if folders(top):
        found = _classes(top, "imagenet")
        samples = [(path, label) for path, label in zip(found.paths, found.labels, strict=True)]
    else:
        truth = _ground_truth(root)
        samples = [(name, _of_number(truth, name, top)) for name in files(top) if name.lower().endswith(SUFFIXES)]
    if not samples:
        raise MissingData(
            f"{top} does not have images; expected them in folders named by WordNet id, or directly in {top}"
        )
    return _by_file(top, sorted(samples, key=lambda sample: Path(sample[0]).name))


def _by_file(root: Path, samples: list[tuple[str, int]]) -> ImageFiles:
    """Return images with their file names as ids, so that the ids do not depend on the folders of the files."""
    found = list_images(root, samples)
    return ImageFiles(root, check_unique([Path(path).name for path in found.paths], root), found.labels, found.paths)


def _ground_truth(root: Path) -> list[int]:
    """Return the labels of the validation images. Entry i is the label of the image with the number i + 1."""
    from scipy.io import loadmat

    labels = Labels("imagenet")
    kit = existing_folder(root, "ILSVRC2012_devkit_t12/data")
    with reading(kit / "meta.mat"):
        synsets = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
        places = {
            int(row["ILSVRC2012_ID"]): labels.of(str(row["WNID"]), kit / "meta.mat")
            for row in synsets
            if row["num_children"] == 0
        }
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    numbers = read_lines(truth)
    with reading(truth):
        return [places[int(number)] for number in numbers]


def _of_number(truth: list[int], name: str, where: Path) -> int:
    number = _NUMBER.fullmatch(name)
    if not number or not 1 <= int(number[1]) <= len(truth):
        raise UserError(
            f"the development kit lacks a label for {where / name}; expected file names from"
            f" ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(truth):08d}.JPEG: rename or remove the file"
        )
    return truth[int(number[1]) - 1]


def tiny_imagenet(root: Path) -> StoredImages:
    """Read the validation split of TinyImageNet: "val/images/val_0.JPEG", with labels in "val/val_annotations.txt".

    Images in folders "val/<WordNet id>" are also read. The id of a sample is its file name.
    """
    labels, top = Labels("tiny-imagenet"), existing_folder(root, "val")
    names = [name for name in folders(top) if name in labels]
    if names:
        paths = [(f"{raw}/{path}", labels.of(raw, top)) for raw in names for path in _images(top / raw)]
        return _by_file(top, sorted(paths, key=lambda sample: Path(sample[0]).name))
    annotations = top / "val_annotations.txt"
    with reading(annotations):
        rows = [line.split("\t")[:2] for line in read_lines(annotations)]
        return _by_file(top, [(f"images/{name}", labels.of(raw, annotations)) for name, raw in rows])
