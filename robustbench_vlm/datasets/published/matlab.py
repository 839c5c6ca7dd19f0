"""Datasets whose lists are MATLAB files: Flowers102 and StanfordCars."""

from pathlib import Path

from robustbench_vlm.datasets.published.classes import Labels
from robustbench_vlm.datasets.published.decode import folder, listed, reading
from robustbench_vlm.datasets.published.original import Pictures


def flowers102(root: Path) -> Pictures:
    """Read the test part of Flowers102: "tstid" in "setid.mat", classes from 1 in "imagelabels.mat", "jpg"."""
    import numpy
    from scipy.io import loadmat

    with reading(root / "setid.mat"):
        numbers = numpy.atleast_1d(loadmat(root / "setid.mat", squeeze_me=True)["tstid"])
    classes = range(len(Labels("flowers102")))
    with reading(root / "imagelabels.mat"):
        labels = numpy.atleast_1d(loadmat(root / "imagelabels.mat", squeeze_me=True)["labels"])
        if numbers.size and not 1 <= numbers.min() <= numbers.max() <= labels.size:
            raise ValueError(f"it has {labels.size} labels for images {numbers.min()} to {numbers.max()}")
        if labels.min() < 1:
            raise ValueError("its labels begin below 1")
        samples = [(f"image_{number:05d}.jpg", classes[int(labels[number - 1]) - 1]) for number in numbers.tolist()]
    return listed(folder(root, "jpg"), samples)


def stanford_cars(root: Path) -> Pictures:
    """Read the test part of StanfordCars: "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat", "cars_test"."""
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
            raise ValueError("its classes begin below 1")
        samples = [(str(row["fname"]), places[number - 1]) for row, number in zip(rows, numbers, strict=True)]
    return listed(folder(root, "cars_test/cars_test", "cars_test"), samples)
