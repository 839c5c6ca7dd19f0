"""Readers of datasets whose split is in a list file (text, JSON or MATLAB).

The datasets are DTD, FGVC-Aircraft, Food-101, Oxford-IIIT Pet, SUN397, Hateful Memes, Flowers102 and StanfordCars.
"""

from pathlib import Path

from robustbench_vlm.core.strict_json import read_json
from robustbench_vlm.datasets.listing import walk
from robustbench_vlm.datasets.published.base import MissingData, StoredImages
from robustbench_vlm.datasets.published.class_lists import Labels
from robustbench_vlm.datasets.published.image_files import (
    SUFFIXES,
    existing_folder,
    list_images,
    read_lines,
    reading,
)

_MAX_BYTES = 2**26
"""Largest size of a list of images in bytes. The list of Food-101 has one megabyte."""


def dtd(root: Path) -> StoredImages:
    """Read the test split of DTD's first partition: "dtd/labels/test1.txt" lists paths below "dtd/images"."""
    top, labels = existing_folder(root, "dtd", "."), Labels("dtd")
    split = top / "labels" / "test1.txt"
    samples = [(path, labels.of(path.partition("/")[0], split)) for path in read_lines(split)]
    return list_images(top / "images", samples)


def food101(root: Path) -> StoredImages:
    """Read the test split of Food-101: "meta/test.json" or "meta/test.txt" lists the images without ".jpg"."""
    labels, split = Labels("food101"), root / "meta" / "test.json"
    if split.exists():
        with reading(split):
            lists = read_json(split, "the list of images", max_bytes=_MAX_BYTES)
            paths = [path for paths in lists.values() for path in paths]
    else:
        split = split.with_suffix(".txt")
        paths = read_lines(split)
    return list_images(root / "images", [(f"{path}.jpg", labels.of(path.partition("/")[0], split)) for path in paths])


def fgvc_aircraft(root: Path) -> StoredImages:
    """Read the test split of FGVC-Aircraft: "data/images_variant_test.txt" lists image numbers and variants."""
    top, labels = existing_folder(root, "data"), Labels("fgvc-aircraft")
    labels.of_numbers(read_lines(top / "variants.txt"), top / "variants.txt")
    split = top / "images_variant_test.txt"
    rows = [line.partition(" ") for line in read_lines(split)]
    return list_images(top / "images", [(f"{number}.jpg", labels.of(variant, split)) for number, _, variant in rows])


def oxford_pets(root: Path) -> StoredImages:
    """Read the test split of Oxford-IIIT Pet: "annotations/test.txt" lists image names such as "Abyssinian_201"."""
    labels, split = Labels("oxford-pets"), root / "annotations" / "test.txt"
    names = [line.split()[0] for line in read_lines(split) if not line.startswith("#")]
    return list_images(root / "images", [(f"{name}.jpg", labels.of(name.rpartition("_")[0], split)) for name in names])


def sun397(root: Path) -> StoredImages:
    """Read all images of SUN397: "a/abbey/sun_<letters>.jpg" for the classes in "ClassName.txt"."""
    labels, listing = Labels("sun397"), root / "ClassName.txt"
    labels.of_numbers([line[3:] for line in read_lines(listing)], listing)
    samples = [
        (f"{place}/{name}", labels.of(place.partition("/")[2], root))
        for place, names in walk(root)
        for name in names
        if name.startswith("sun_") and name.lower().endswith(SUFFIXES)
    ]
    if not samples:
        raise MissingData(f"{root} does not have images; expected files such as a/abbey/sun_aaalbzqrimafwbiv.jpg")
    return list_images(root, samples)


def hateful_memes(root: Path) -> StoredImages:
    """Read the split of Hateful Memes that CLIP's paper uses, "dev_seen".

    "dev_seen.jsonl" has one object per line, with the keys "img" (path) and "label" (0 or 1).
    """
    split = root / "dev_seen.jsonl"
    with reading(split):
        rows = [read_json(line, f"a line of {split.name}") for line in read_lines(split)]
        samples = [(str(row["img"]), range(len(Labels("hateful-memes")))[int(row["label"])]) for row in rows]
    return list_images(root, samples)


def flowers102(root: Path) -> StoredImages:
    """Read the test split of Flowers102 ("tstid" in "setid.mat"), with labels from 1 in "imagelabels.mat"."""
    import numpy
    from scipy.io import loadmat

    with reading(root / "setid.mat"):
        numbers = numpy.atleast_1d(loadmat(root / "setid.mat", squeeze_me=True)["tstid"])
    classes = range(len(Labels("flowers102")))
    with reading(root / "imagelabels.mat"):
        labels = numpy.atleast_1d(loadmat(root / "imagelabels.mat", squeeze_me=True)["labels"])
        if numbers.size and not 1 <= numbers.min() <= numbers.max() <= labels.size:
            raise ValueError(
                f"the file has {labels.size} labels, expected labels of images {numbers.min()} to {numbers.max()}"
            )
        if labels.min() < 1:
            raise ValueError(f"the file has the label {labels.min()}, expected labels from 1")
        samples = [(f"image_{number:05d}.jpg", classes[int(labels[number - 1]) - 1]) for number in numbers.tolist()]
    return list_images(existing_folder(root, "jpg"), samples)


def stanford_cars(root: Path) -> StoredImages:
    """Read the test split of StanfordCars: images in "cars_test" with labels in "cars_test_annos_withlabels.mat".

    The class names are in "devkit/cars_meta.mat".
    """
    import numpy
    from scipy.io import loadmat

    meta, split = root / "devkit" / "cars_meta.mat", root / "cars_test_annos_withlabels.mat"
    if not split.exists() and (root / "devkit" / split.name).exists():
        split = root / "devkit" / split.name
    with reading(meta):
        names = loadmat(meta, squeeze_me=True)["class_names"].tolist()
    places = Labels("stanford-cars").of_numbers(names, meta)
    with reading(split):
        rows = numpy.atleast_1d(loadmat(split, squeeze_me=True)["annotations"])
        numbers = [int(row["class"]) for row in rows]
        if numbers and min(numbers) < 1:
            raise ValueError(f"the file has the class {min(numbers)}, expected classes from 1")
        samples = [(str(row["fname"]), places[number - 1]) for row, number in zip(rows, numbers, strict=True)]
    return list_images(existing_folder(root, "cars_test/cars_test", "cars_test"), samples)
