"""Datasets whose split is a list: DTD, FGVC-Aircraft, Food-101, Oxford-IIIT Pet, SUN397, Hateful Memes."""

import json
from pathlib import Path

from robustbench_vlm.datasets.published.classes import Labels
from robustbench_vlm.datasets.published.decode import SUFFIXES, folder, lines, listed, reading, walked
from robustbench_vlm.datasets.published.original import MissingData, Pictures


def dtd(root: Path) -> Pictures:
    """Read the test part of DTD's first partition, "dtd/labels/test1.txt" of paths below "dtd/images"."""
    top, labels = folder(root, "dtd", "."), Labels("dtd")
    split = top / "labels" / "test1.txt"
    samples = [(path, labels.of(path.partition("/")[0], split)) for path in lines(split)]
    return listed(top / "images", samples)


def food101(root: Path) -> Pictures:
    """Read the test part of Food-101, "meta/test.json" (or "meta/test.txt") of paths below "images" without ".jpg"."""
    labels, split = Labels("food101"), root / "meta" / "test.json"
    if split.exists():
        with reading(split):
            paths = [path for paths in json.loads(split.read_text(encoding="utf-8")).values() for path in paths]
    else:
        split = split.with_suffix(".txt")
        paths = lines(split)
    return listed(root / "images", [(f"{path}.jpg", labels.of(path.partition("/")[0], split)) for path in paths])


def fgvc_aircraft(root: Path) -> Pictures:
    """Read the test part of FGVC-Aircraft by variant, "data/images_variant_test.txt" of numbers and variants."""
    top, labels = folder(root, "data"), Labels("fgvc-aircraft")
    labels.of_numbers(lines(top / "variants.txt"), top / "variants.txt")
    split = top / "images_variant_test.txt"
    rows = [line.partition(" ") for line in lines(split)]
    return listed(top / "images", [(f"{number}.jpg", labels.of(variant, split)) for number, _, variant in rows])


def oxford_pets(root: Path) -> Pictures:
    """Read the test part of Oxford-IIIT Pet, "annotations/test.txt" of names like "Abyssinian_201" and numbers."""
    labels, split = Labels("oxford-pets"), root / "annotations" / "test.txt"
    names = [line.split()[0] for line in lines(split) if not line.startswith("#")]
    return listed(root / "images", [(f"{name}.jpg", labels.of(name.rpartition("_")[0], split)) for name in names])


def sun397(root: Path) -> Pictures:
    """Read all of SUN397, images "a/abbey/sun_<letters>.jpg" of the classes in "ClassName.txt"."""
    labels, listing = Labels("sun397"), root / "ClassName.txt"
    labels.of_numbers([line[3:] for line in lines(listing)], listing)
    samples = [
        (f"{place}/{name}", labels.of(place.partition("/")[2], root))
        for place, names in walked(root)
        for name in names
        if name.startswith("sun_") and name.lower().endswith(SUFFIXES)
    ]
    if not samples:
        raise MissingData(f"{root} has a list of classes and no images, as a/abbey/sun_aaalbzqrimafwbiv.jpg")
    return listed(root, samples)


def hateful_memes(root: Path) -> Pictures:
    """Read the part of Hateful Memes that CLIP was tested on, "dev_seen.jsonl" of "img" and "label" (0 or 1)."""
    split = root / "dev_seen.jsonl"
    with reading(split):
        rows = [json.loads(line) for line in lines(split)]
        samples = [(str(row["img"]), range(len(Labels("hateful-memes")))[int(row["label"])]) for row in rows]
    return listed(root, samples)
