"""Datasets with one folder a class: Caltech, EuroSAT, Country211, ImageNet and its kin."""

import re
from collections.abc import Iterator
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.image_folder import files, folders
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
    walk,
)

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


def caltech101(root: Path) -> StoredImages:
    """Read all of Caltech101 but its background, "101_ObjectCategories/<class>/image_0001.jpg"."""
    return _classes(existing_folder(root, "101_ObjectCategories"), "caltech101", left_out=("BACKGROUND_Google",))


def caltech256(root: Path) -> StoredImages:
    """Read all of Caltech256 with its clutter, "256_ObjectCategories/001.ak47/001_0001.jpg"."""
    return _classes(existing_folder(root, "256_ObjectCategories"), "caltech256")


def eurosat(root: Path) -> StoredImages:
    """Read all of EuroSAT's RGB images, "2750/<class>/<class>_1.jpg"."""
    return _classes(existing_folder(root, "2750"), "eurosat")


def country211(root: Path) -> StoredImages:
    """Read the test part of Country211, "test/<country's code>/1.jpg"."""
    return _classes(existing_folder(root, "test"), "country211")


def imagenet_r(root: Path) -> StoredImages:
    """Read ImageNet-R, "<WordNet id>/art_0.jpg"."""
    return _classes(existing_folder(root, "imagenet-r", "."), "imagenet-r")


def imagenet_sketch(root: Path) -> StoredImages:
    """Read ImageNet-Sketch, "<WordNet id>/sketch_0.JPEG", directly or in its folder "sketch"."""
    return _classes(existing_folder(root, "sketch", "."), "imagenet-sketch")


def _classes(root: Path, name: str, left_out: tuple[str, ...] = ()) -> ImageFiles:
    """Return the images below each class's folder, classes and files in the order of their names."""
    labels = Labels(name)
    samples = [
        (f"{raw}/{path}", labels.of(raw, root))
        for raw in folders(root)
        if raw not in left_out
        for path in _images(root / raw)
    ]
    if not samples:
        raise MissingData(f"{root} has no folder of a class with images, as {class_names(name)[0]}")
    return list_images(root, samples)


def _images(top: Path) -> Iterator[str]:
    """Yield the paths of a class's images, also of those in folders of its own, sorted as torchvision does it."""
    for place, names in walk(top):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield name if place == "." else f"{place}/{name}"


def imagenet(root: Path) -> StoredImages:
    """Read ImageNet's validation part: "val/<WordNet id>/ILSVRC2012_val_00000001.JPEG", or all directly in "val".

    For the latter the development kit must lie beside it, "ILSVRC2012_devkit_t12/data". A sample's name is its file's.
    """
    top = existing_folder(root, "val")
    if folders(top):
        found = _classes(top, "imagenet")
        samples = [(path, label) for path, label in zip(found.paths, found.labels, strict=True)]
    else:
        truth = _ground_truth(root)
        samples = [(name, _of_number(truth, name, top)) for name in files(top) if name.lower().endswith(SUFFIXES)]
    if not samples:
        raise MissingData(f"{top} has no images, neither in folders by WordNet id nor directly")
    return _by_file(top, sorted(samples, key=lambda sample: Path(sample[0]).name))


def _by_file(root: Path, samples: list[tuple[str, int]]) -> ImageFiles:
    """Return images that are named by their file alone, so that rearranging the folders renames none."""
    found = list_images(root, samples)
    return ImageFiles(root, check_unique([Path(path).name for path in found.paths], root), found.labels, found.paths)


def _ground_truth(root: Path) -> list[int]:
    """Return the label of each image of the validation part, by number."""
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
            f"{where / name} is none of the {len(truth)} images that the development kit has labels for: they are"
            " called ILSVRC2012_val_00000001.JPEG and so on"
        )
    return truth[int(number[1]) - 1]


def tiny_imagenet(root: Path) -> StoredImages:
    """Read TinyImageNet's validation part, "val/images/val_0.JPEG" with the classes in "val/val_annotations.txt".

    Images that were sorted into "val/<WordNet id>" are read too; a sample's name is its file's.
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
