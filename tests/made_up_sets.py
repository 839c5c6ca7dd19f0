"""Write small made-up copies of the published datasets with the layout and formats of the real ones.

A copy has two images of each of three classes. The images are random noise. As in the real datasets, the
list files have all classes.
"""

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy
from PIL import Image
from python2_pickle import python2_pickle
from scipy.io import savemat

from robustbench_vlm.datasets.published import PUBLISHED, PublishedDataset, class_names
from robustbench_vlm.datasets.published.class_lists import hub_class_names
from robustbench_vlm.datasets.published.hub import hub_folder

CLASSES, EACH = 3, 2


def make(name: str, root: Path) -> Path:
    """Write a dataset below `root`, in torchvision's folder for it, and return that folder."""
    folder = root / PUBLISHED[name].folder
    folder.mkdir(parents=True)
    _MAKERS[name](folder)
    return folder


def make_shards(
    name: str, root: Path, written: Iterable[str] | None = None, samples: int = CLASSES * EACH, first_label: int = 0
) -> Path:
    """Write the Hub's tar shards of a dataset below `root`/wds, with four samples per shard, and return their folder.

    `written` has the lines of classnames.txt. Labels are indices of these lines: two samples per label, starting with
    `first_label`.
    """
    hub = PUBLISHED[name].hub
    assert hub
    folder = hub_folder(hub, root)
    (folder / "test").mkdir(parents=True)
    _write(folder / "classnames.txt", written or [raw or "background_google" for raw in hub_class_names(name)])
    shards = [range(start, min(start + 4, samples)) for start in range(0, samples, 4)]
    for place, numbers in enumerate(shards):
        with tarfile.open(folder / "test" / f"{place}.tar", "w") as archive:
            for number in numbers:
                _add(archive, f"s{number:07d}.cls", str(first_label + number // EACH).encode())
                _add(archive, f"s{number:07d}.webp", _webp(number))
    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    return folder


def local_sources(name: str, *kinds: str, host: str = "") -> PublishedDataset:
    """Return a published dataset with the number of samples of its made-up copies, and with sources on a local server.

    `host` is the address of the original host, by default that of the Hub. `kinds` are the kinds of the sources that
    are kept. The default is all.
    """
    kept = [source for source in PUBLISHED[name].sources if source.kind in (kinds or ("hub", "original"))]
    sources = tuple(dataclasses.replace(source, host=host * (source.kind == "original")) for source in kept)
    samples = EACH * min(CLASSES, len(class_names(name)))
    return dataclasses.replace(PUBLISHED[name], samples=samples, sources=sources)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _webp(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(number, 20, 24)).save(file, "webp", lossless=True)
    return file.getvalue()


def noise(number: int, height: int, width: int) -> numpy.ndarray:
    """Return the pixels of the image with this number as uint8 [H, W, 3]."""
    return numpy.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def _save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(number, 30, 40)).save(path, quality=90)


def _some(name: str) -> list[str]:
    """Return the classes that have images: the first, the last and one in between, unsorted."""
    names = class_names(name)
    if name == "caltech256":  # torchvision expects image names with the index of the folder
        return list(names[:CLASSES])
    return [names[-1], names[0], names[len(names) // 2]][: len(names)]


def _numbers(name: str) -> list[int]:
    return [class_names(name).index(raw) for raw in _some(name) for _ in range(EACH)]


def _write(path: Path, text: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in text))


def _folders(name: str, form: str) -> Callable[[Path], None]:
    """Return a function that writes a dataset with one folder per class.

    `form` is a pattern of image paths with the class, its number and the number of the image.
    """

    def maker(root: Path) -> None:
        for raw in _some(name):
            place = class_names(name).index(raw)
            for number in range(1, EACH + 1):
                _save(root / form.format(raw=raw, place=place + 1, number=number), 100 * place + number)

    return maker


def _caltech101(root: Path) -> None:
    _folders("caltech101", "101_ObjectCategories/{raw}/image_{number:04d}.jpg")(root)
    _save(root / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 1)


def _caltech256(root: Path) -> None:
    _folders("caltech256", "256_ObjectCategories/{raw}/{place:03d}_{number:04d}.jpg")(root)
    # The real archive contains this file by mistake.
    (root / "256_ObjectCategories" / _some("caltech256")[0] / "RENAME2").write_text("#!/bin/sh\n")


def _country211(root: Path) -> None:
    _folders("country211", "test/{raw}/{number}.jpg")(root)
    _folders("country211", "train/{raw}/{number}.jpg")(root)


def _imagenet(root: Path) -> None:
    for place, raw in enumerate(_some("imagenet")):
        for number in range(EACH):
            _save(root / "val" / raw / f"ILSVRC2012_val_{number * CLASSES + place + 1:08d}.JPEG", place + 10 * number)


def _imagenet_r(root: Path) -> None:
    _folders("imagenet-r", "{raw}/art_{number}.jpg")(root)
    (root / "README.txt").write_text("ImageNet-R\n")


def _tiny_imagenet(root: Path) -> None:
    names = [raw for raw in _some("tiny-imagenet") for _ in range(EACH)]
    for number in range(len(names)):
        _save(root / "val" / "images" / f"val_{number}.JPEG", number)
    rows = (f"val_{number}.JPEG\t{raw}\t0\t32\t44\t62" for number, raw in enumerate(names))
    _write(root / "val" / "val_annotations.txt", rows)
    _write(root / "wnids.txt", class_names("tiny-imagenet"))


def _dtd(root: Path) -> None:
    paths = [f"{raw}/{raw}_{number:04d}.jpg" for raw in _some("dtd") for number in range(1, EACH + 1)]
    for number, path in enumerate(paths):
        _save(root / "dtd" / "images" / path, number)
    _write(root / "dtd" / "labels" / "test1.txt", paths)
    _write(root / "dtd" / "labels" / "train1.txt", [])


def _food101(root: Path) -> None:
    split = {
        raw: [f"{raw}/{place}{number}11328" for number in range(EACH)] for place, raw in enumerate(_some("food101"))
    }
    paths = [path for paths in split.values() for path in paths]
    for number, path in enumerate(paths):
        _save(root / "images" / f"{path}.jpg", number)
    _write(root / "meta" / "test.txt", paths)
    (root / "meta" / "test.json").write_text(json.dumps(split))
    (root / "meta" / "train.json").write_text(json.dumps({}))


def _fgvc_aircraft(root: Path) -> None:
    rows = [
        (f"{900 - place}{number:04d}", raw) for place, raw in enumerate(_some("fgvc-aircraft")) for number in range(2)
    ]
    for number, (name, _) in enumerate(rows):
        _save(root / "data" / "images" / f"{name}.jpg", number)
    _write(root / "data" / "images_variant_test.txt", (f"{name} {raw}" for name, raw in rows))
    _write(root / "data" / "images_variant_trainval.txt", [])
    _write(root / "data" / "variants.txt", class_names("fgvc-aircraft"))


def _oxford_pets(root: Path) -> None:
    # Only the file names of cats begin with a capital letter.
    stems = {raw: raw if raw == "Abyssinian" else raw.lower().replace(" ", "_") for raw in _some("oxford-pets")}
    samples = [
        (f"{stem}_{number}", class_names("oxford-pets").index(raw) + 1)
        for raw, stem in stems.items()
        for number in range(EACH)
    ]
    for number, (name, _) in enumerate(samples):
        _save(root / "images" / f"{name}.jpg", number)
    _write(root / "annotations" / "test.txt", (f"{name} {place} 2 1" for name, place in samples))


def _sun397(root: Path) -> None:
    for place, raw in enumerate(_some("sun397")):
        for number in range(EACH):
            _save(root / raw[0] / raw / f"sun_a{'ab'[number]}{'xyz'[place]}.jpg", 10 * place + number)
    _write(root / "ClassName.txt", (f"/{raw[0]}/{raw}" for raw in class_names("sun397")))


def _hateful_memes(root: Path) -> None:
    rows = [
        {"id": 8291 + number, "img": f"img/0{8291 + number}.png", "label": number % 2, "text": "a text"}
        for number in range(4)
    ]
    for number, row in enumerate(rows):
        _save(root / str(row["img"]), number)
    _write(root / "dev_seen.jsonl", map(json.dumps, rows))


def _flowers102(root: Path) -> None:
    # The last four images are not in the test split. The split is not sorted.
    labels = [place + 1 for place in _numbers("flowers102")]
    for number in range(1, len(labels) + 1):
        _save(root / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(root / "imagelabels.mat", {"labels": numpy.array([[*labels, 5, 6, 7, 8]], dtype=numpy.uint8)})
    ids = {"trnid": [7, 9], "valid": [8, 10], "tstid": [2, 1, 5, 6, 4, 3]}
    savemat(root / "setid.mat", {key: numpy.array([value], dtype=numpy.uint16) for key, value in ids.items()})


def _stanford_cars(root: Path) -> None:
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    rows = numpy.zeros((1, CLASSES * EACH), dtype=[(field, object) for field in fields])
    for number, place in enumerate(_numbers("stanford-cars")):
        rows[0, number] = (30, 52, 246, 147, place + 1, f"{number + 1:05d}.jpg")
        _save(root / "cars_test" / f"{number + 1:05d}.jpg", number)
    (root / "devkit").mkdir()
    names = numpy.array([list(class_names("stanford-cars"))], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": rows})


def _cifar(name: str, batch: str, key: str, meta: str, names: str) -> Callable[[Path], None]:
    def maker(root: Path) -> None:
        labels = _numbers(name)
        pixels = numpy.stack([noise(number, 32, 32).transpose(2, 0, 1).reshape(-1) for number in range(len(labels))])
        entry = {"batch_label": "testing batch 1 of 1", key: labels, "data": pixels}
        (root / batch).write_bytes(python2_pickle(entry))
        (root / meta).write_bytes(python2_pickle({"num_vis": 3072, names: list(class_names(name))}))

    return maker


def _stl10(root: Path) -> None:
    labels = _numbers("stl10")
    pixels = numpy.stack([noise(number, 96, 96).transpose(2, 1, 0) for number in range(len(labels))])
    (root / "test_X.bin").write_bytes(pixels.tobytes())
    (root / "test_y.bin").write_bytes(bytes(label + 1 for label in labels))
    _write(root / "class_names.txt", class_names("stl10"))


def _pcam(root: Path) -> None:
    pixels = numpy.stack([noise(number, 96, 96) for number in range(4)])
    with h5py.File(root / "camelyonpatch_level_2_split_test_x.h5", "w") as file:
        file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip")
    with h5py.File(root / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file.create_dataset("y", data=numpy.array([1, 0, 0, 1], dtype=numpy.uint8).reshape(-1, 1, 1, 1))


_MAKERS: dict[str, Callable[[Path], None]] = {
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "cifar10": _cifar("cifar10", "test_batch", "labels", "batches.meta", "label_names"),
    "cifar100": _cifar("cifar100", "test", "fine_labels", "meta", "fine_label_names"),
    "dtd": _dtd,
    "eurosat": _folders("eurosat", "2750/{raw}/{raw}_{number}.jpg"),
    "fgvc-aircraft": _fgvc_aircraft,
    "flowers102": _flowers102,
    "food101": _food101,
    "imagenet": _imagenet,
    "oxford-pets": _oxford_pets,
    "pcam": _pcam,
    "stanford-cars": _stanford_cars,
    "stl10": _stl10,
    "sun397": _sun397,
    "tiny-imagenet": _tiny_imagenet,
    "country211": _country211,
    "imagenet-r": _imagenet_r,
    "imagenet-sketch": _folders("imagenet-sketch", "sketch/{raw}/sketch_{number}.JPEG"),
    "hateful-memes": _hateful_memes,
}
