"""Tests of the readers of published datasets: comparison with torchvision's readers, and damaged files."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from made_up_sets import make, noise
from python2_pickle import python2_pickle
from scipy.io import loadmat, savemat
from torchvision import datasets as torchvision_datasets

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.published import PUBLISHED, MissingData, StoredImages, class_names
from robustbench_vlm.datasets.published.class_lists import normalised

REFERENCES: dict[str, Callable[[Path], Any]] = {
    "caltech101": torchvision_datasets.Caltech101,
    "caltech256": torchvision_datasets.Caltech256,
    "cifar10": lambda root: torchvision_datasets.CIFAR10(root, train=False),
    "cifar100": lambda root: torchvision_datasets.CIFAR100(root, train=False),
    "dtd": lambda root: torchvision_datasets.DTD(root, split="test"),
    "eurosat": torchvision_datasets.EuroSAT,
    "fgvc-aircraft": lambda root: torchvision_datasets.FGVCAircraft(root, split="test"),
    "flowers102": lambda root: torchvision_datasets.Flowers102(root, split="test"),
    "food101": lambda root: torchvision_datasets.Food101(root, split="test"),
    "oxford-pets": lambda root: torchvision_datasets.OxfordIIITPet(root, split="test"),
    "pcam": lambda root: torchvision_datasets.PCAM(root, split="test"),
    "stanford-cars": lambda root: torchvision_datasets.StanfordCars(root, split="test"),
    "stl10": lambda root: torchvision_datasets.STL10(root, split="test"),
    "sun397": torchvision_datasets.SUN397,
    "country211": lambda root: torchvision_datasets.Country211(root, split="test"),
    "imagenet": lambda root: torchvision_datasets.ImageFolder(root / "imagenet" / "val"),
    "imagenet-r": lambda root: torchvision_datasets.ImageFolder(root / "imagenet-r"),
    "imagenet-sketch": lambda root: torchvision_datasets.ImageFolder(root / "imagenet-sketch" / "sketch"),
}
# torchvision lists these datasets in the order of the file system. The readers here sort them by name.
OTHER_ORDER = {"imagenet", "sun397"}


@pytest.fixture(autouse=True)
def _without_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off torchvision's checksums, because made-up files do not have the checksums of the real ones."""
    for module in ("cifar", "stl10", "flowers102"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).exists()
        )
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "train_list", [])
    monkeypatch.setattr(torchvision_datasets.CIFAR100, "train_list", [])
    monkeypatch.setattr(torchvision_datasets.STL10, "train_list", [])


def content(pictures: StoredImages, index: int) -> bytes:
    return pictures.image(index).convert("RGB").tobytes()


@pytest.mark.filterwarnings("ignore:.*align should be passed:Warning")
@pytest.mark.parametrize("name", REFERENCES)
def test_images_labels_and_order_equal_those_of_torchvision(name: str, tmp_path: Path) -> None:
    ours = PUBLISHED[name].read(make(name, tmp_path))
    theirs = REFERENCES[name](tmp_path)
    numbered = class_names(name)
    # torchvision names only the pet classes that have images, but its labels count all classes.
    by_number = name in ("pcam", "oxford-pets")
    names = numbered if by_number else getattr(theirs, "classes", None) or theirs.categories
    found = [(content(ours, index), normalised(numbered[label])) for index, label in enumerate(ours.labels)]
    expected = [(picture.convert("RGB").tobytes(), normalised(names[label])) for picture, label in theirs]
    assert len(found) == len(ours.ids) == len(set(ours.ids)) >= 4
    assert (sorted(found) == sorted(expected)) if name in OTHER_ORDER else (found == expected)


@pytest.mark.parametrize(
    "name", sorted(REFERENCES.keys() & {"cifar10", "fgvc-aircraft", "stl10", "sun397", "stanford-cars"})
)
def test_labels_of_complete_lists_equal_those_of_torchvision(name: str, tmp_path: Path) -> None:
    ours = PUBLISHED[name].read(make(name, tmp_path))
    assert sorted(ours.labels) == sorted(label for _, label in REFERENCES[name](tmp_path))


def test_datasets_that_torchvision_does_not_have(tmp_path: Path) -> None:
    tiny = PUBLISHED["tiny-imagenet"].read(make("tiny-imagenet", tmp_path))
    assert tiny.ids[:3] == ("val_0.JPEG", "val_1.JPEG", "val_2.JPEG")
    assert tuple(tiny.labels) == (199, 199, 0, 0, 100, 100)
    memes = PUBLISHED["hateful-memes"].read(make("hateful-memes", tmp_path))
    assert memes.ids[1] == "img/08292.png" and tuple(memes.labels) == (0, 1, 0, 1)
    assert content(memes, 1) == noise(1, 30, 40).tobytes()


def test_images_are_decoded_only_on_request(tmp_path: Path) -> None:
    folder = make("dtd", tmp_path)
    for path in (folder / "dtd" / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    pictures = PUBLISHED["dtd"].read(folder)
    with pytest.raises(UnreadableImage, match=r"zigzagged_0001\.jpg"):
        pictures.image(0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_empty_and_missing_folders_raise_missing_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=str(tmp_path)):
        PUBLISHED[name].read(tmp_path)
    with pytest.raises(MissingData, match="nowhere"):
        PUBLISHED[name].read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "test_batch"),
        ("cifar10", "batches.meta"),
        ("stl10", "test_X.bin"),
        ("stl10", "test_y.bin"),
        ("stl10", "class_names.txt"),
        ("pcam", "camelyonpatch_level_2_split_test_x.h5"),
        ("pcam", "camelyonpatch_level_2_split_test_y.h5"),
        ("flowers102", "setid.mat"),
        ("flowers102", "imagelabels.mat"),
        ("stanford-cars", "devkit/cars_meta.mat"),
        ("stanford-cars", "cars_test_annos_withlabels.mat"),
        ("dtd", "dtd/labels/test1.txt"),
        ("food101", "meta/test.json"),
        ("fgvc-aircraft", "data/variants.txt"),
        ("fgvc-aircraft", "data/images_variant_test.txt"),
        ("oxford-pets", "annotations/test.txt"),
        ("sun397", "ClassName.txt"),
        ("tiny-imagenet", "val/val_annotations.txt"),
        ("hateful-memes", "dev_seen.jsonl"),
    ],
)
def test_truncated_files_and_web_pages_are_errors(name: str, file: str, tmp_path: Path) -> None:
    path = make(name, tmp_path) / file
    whole = path.read_bytes()
    for content in (
        b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>",
        whole[: len(whole) * 2 // 3],
    ):
        path.write_bytes(content)
        if file in ("dtd/labels/test1.txt", "annotations/test.txt", "val/val_annotations.txt") and content in whole:
            continue  # A list that is truncated at the end of a line is valid. `verify` counts its samples.
        with pytest.raises(UserError) as told:
            PUBLISHED[name].read(path.parents[len(Path(file).parts) - 1])
        assert path.name in str(told.value) and not isinstance(told.value, MissingData)
    path.unlink()
    if file != "meta/test.json":
        with pytest.raises(MissingData, match=path.name):
            PUBLISHED[name].read(path.parents[len(Path(file).parts) - 1])


@pytest.mark.parametrize("name", ["caltech101", "eurosat", "imagenet", "imagenet-r", "imagenet-sketch", "country211"])
def test_folder_of_an_unknown_class_is_an_error(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path)
    top = next(path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")).parents[1]
    shutil.copytree(next(path for path in top.iterdir() if path.is_dir()), top / "aardvark")
    with pytest.raises(UserError, match=f"{top} has the class 'aardvark', which is not a class of {name}"):
        PUBLISHED[name].read(folder)


def test_labels_depend_on_class_names_and_not_on_their_order(tmp_path: Path) -> None:
    before = PUBLISHED["stanford-cars"].read(make("stanford-cars", tmp_path)).labels
    meta = tmp_path / "stanford_cars" / "devkit" / "cars_meta.mat"
    names = [str(name[0]) for name in loadmat(meta)["class_names"][0]]
    assert names == list(class_names("stanford-cars"))
    savemat(meta, {"class_names": numpy.array([names[::-1]], dtype=object)})
    after = PUBLISHED["stanford-cars"].read(tmp_path / "stanford_cars").labels
    assert list(after) == [195 - label for label in before]


def test_incomplete_class_list_is_an_error(tmp_path: Path) -> None:
    folder = make("cifar100", tmp_path)
    (folder / "meta").write_bytes(python2_pickle({"fine_label_names": list(class_names("cifar100"))[:99]}))
    with pytest.raises(
        UserError, match=r"lists 99 classes \(99 different ones\), expected the 100 classes of cifar100"
    ):
        PUBLISHED["cifar100"].read(folder)


def test_unequal_numbers_of_images_and_labels_are_an_error(tmp_path: Path) -> None:
    folder = make("stl10", tmp_path)
    (folder / "test_y.bin").write_bytes(bytes([1, 2, 3]))
    with pytest.raises(UserError, match=r"test_X\.bin has 6 images and .*test_y.bin has 3 labels"):
        PUBLISHED["stl10"].read(folder)


def test_labels_out_of_range_are_an_error(tmp_path: Path) -> None:
    folder = make("stl10", tmp_path)
    (folder / "test_y.bin").write_bytes(bytes([1, 2, 3, 4, 5, 11]))
    with pytest.raises(UserError, match=r"test_y\.bin.*labels from 0 to 10, expected 0 to 9"):
        PUBLISHED["stl10"].read(folder)


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "harm",
    [
        pickle.dumps({"data": Harm()}),
        b"cnumpy\nfromfile\n(Vx\ntR.",
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy.testing\nrunstring\n.",
    ],
)
def test_pickle_with_code_is_refused(harm: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("cifar10", tmp_path)
    monkeypatch.chdir(tmp_path)
    (folder / "test_batch").write_bytes(harm)
    with pytest.raises(UserError, match=r"test_batch.*the file uses [\w.]+, which is not allowed in a dataset file"):
        PUBLISHED["cifar10"].read(folder)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_newer_protocols_are_read(protocol: int, tmp_path: Path) -> None:
    folder = make("cifar10", tmp_path)
    before = PUBLISHED["cifar10"].read(folder)
    pixels = numpy.stack([noise(number, 32, 32).transpose(2, 0, 1).reshape(-1) for number in range(6)])
    entry = {"labels": list(before.labels), "data": pixels}
    (folder / "test_batch").write_bytes(pickle.dumps(entry, protocol=protocol))
    after = PUBLISHED["cifar10"].read(folder)
    assert [content(after, index) for index in range(6)] == [content(before, index) for index in range(6)]


@pytest.mark.parametrize("outside", ["../../secret.png", "/etc/secret.png"])
def test_list_with_a_path_outside_its_folder_is_an_error(outside: str, tmp_path: Path) -> None:
    folder = make("hateful-memes", tmp_path)
    (folder / "dev_seen.jsonl").write_text(json.dumps({"id": 1, "img": outside, "label": 0}) + "\n")
    with pytest.raises(UserError, match="which is outside this folder"):
        PUBLISHED["hateful-memes"].read(folder)


def test_duplicate_sample_in_a_list_is_an_error(tmp_path: Path) -> None:
    split = make("dtd", tmp_path) / "dtd" / "labels" / "test1.txt"
    split.write_text(split.read_text() * 2)
    with pytest.raises(UserError, match=r"two samples with the id .*zigzagged_0001\.jpg'"):
        PUBLISHED["dtd"].read(tmp_path / "dtd")


def test_food101_json_and_text_lists_give_the_same_samples(tmp_path: Path) -> None:
    folder = make("food101", tmp_path)
    before = PUBLISHED["food101"].read(folder)
    (folder / "meta" / "test.json").unlink()
    after = PUBLISHED["food101"].read(folder)
    assert (before.ids, before.labels) == (after.ids, after.labels)


def _flatten(folder: Path, kit: bool = True) -> None:
    """Move ImageNet's images directly into "val", and write the development kit with their labels."""
    truth = [1] * 50
    wnids = class_names("imagenet")
    for path in sorted((folder / "val").rglob("*.JPEG")):
        truth[int(path.stem[-8:]) - 1] = 1000 - wnids.index(path.parent.name)
        path.rename(folder / "val" / path.name)
    for path in [path for path in (folder / "val").iterdir() if path.is_dir()]:
        path.rmdir()
    if kit:
        data = folder / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
        fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
        # The kit numbers the classes in another order than WordNet ids. Inner nodes of WordNet follow the classes.
        rows = [(1000 - place, wnid, "a, b", "what it is", 0, [], 0) for place, wnid in enumerate(wnids)]
        rows.append((1001, "n00001740", "entity", "that which is", 2, [1, 2], 19))
        synsets = numpy.zeros((len(rows), 1), dtype=[(field, object) for field in fields])
        synsets[:, 0] = rows
        savemat(data / "meta.mat", {"synsets": synsets})


def test_imagenet_in_class_folders_and_in_one_folder_is_the_same(tmp_path: Path) -> None:
    folder = make("imagenet", tmp_path)
    before = PUBLISHED["imagenet"].read(folder)
    sorted_in = [content(before, index) for index in range(6)]
    _flatten(folder)
    after = PUBLISHED["imagenet"].read(folder)
    assert (before.ids, before.labels) == (after.ids, after.labels)
    assert sorted_in == [content(after, index) for index in range(6)]
    (folder / "val" / "ILSVRC2012_val_00000051.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"lacks a label for .*_00000051\.JPEG; expected .*_00000050\.JPEG"):
        PUBLISHED["imagenet"].read(folder)


def test_imagenet_in_one_folder_needs_the_development_kit(tmp_path: Path) -> None:
    folder = make("imagenet", tmp_path)
    _flatten(folder, kit=False)
    with pytest.raises(MissingData, match="ILSVRC2012_devkit_t12"):
        PUBLISHED["imagenet"].read(folder)


def test_tiny_imagenet_in_class_folders_is_the_same(tmp_path: Path) -> None:
    folder = make("tiny-imagenet", tmp_path)
    before = PUBLISHED["tiny-imagenet"].read(folder)
    for name, label in zip(before.ids, before.labels, strict=True):
        goal = folder / "val" / class_names("tiny-imagenet")[label] / name
        goal.parent.mkdir(exist_ok=True)
        (folder / "val" / "images" / name).rename(goal)
    after = PUBLISHED["tiny-imagenet"].read(folder)
    assert (list(before.ids), list(before.labels)) == (list(after.ids), list(after.labels))
    assert after.image(0).size == (40, 30)


def test_stanford_cars_labels_may_be_in_the_devkit(tmp_path: Path) -> None:
    folder = make("stanford-cars", tmp_path)
    name = "cars_test_annos_withlabels.mat"
    (folder / name).rename(folder / "devkit" / name)
    assert len(PUBLISHED["stanford-cars"].read(folder).ids) == 6


def test_damaged_row_of_pcam_raises_unreadable_image(tmp_path: Path) -> None:
    folder = make("pcam", tmp_path)
    pictures = PUBLISHED["pcam"].read(folder)
    path = folder / "camelyonpatch_level_2_split_test_x.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"test_x\.h5"):
        for index in range(4):
            pictures.image(index)
