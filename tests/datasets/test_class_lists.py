"""Tests of the class lists: their sizes, unique names and agreement with the lists of other projects."""

import json
from pathlib import Path

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.published import PUBLISHED, class_names
from robustbench_vlm.datasets.published import class_lists as module
from robustbench_vlm.datasets.published.class_lists import Labels, hub_class_names, normalised

FACTS = Path(__file__).parents[2].parent / "shared" / "facts"
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
COUNTS = {
    "caltech101": 101,
    "caltech256": 257,
    "cifar10": 10,
    "cifar100": 100,
    "dtd": 47,
    "eurosat": 10,
    "fgvc-aircraft": 100,
    "flowers102": 102,
    "food101": 101,
    "imagenet": 1000,
    "oxford-pets": 37,
    "pcam": 2,
    "stanford-cars": 196,
    "stl10": 10,
    "sun397": 397,
    "tiny-imagenet": 200,
    "country211": 211,
    "imagenet-r": 200,
    "imagenet-sketch": 1000,
    "hateful-memes": 2,
}


def test_every_dataset_has_all_its_classes() -> None:
    assert {name: len(class_names(name)) for name in PUBLISHED} == COUNTS


def test_every_class_list_names_its_source() -> None:
    lists = json.loads(Path(module.__file__).with_name("class_lists.json").read_text(encoding="utf-8"))
    assert list(lists) == list(PUBLISHED) and all(entry["source"] for entry in lists.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_normalised_class_names_are_unique(name: str) -> None:
    assert len(set(map(normalised, class_names(name)))) == len(class_names(name))


@pytest.mark.parametrize("name", ["caltech101", "dtd", "food101", "eurosat", "country211", "imagenet", "imagenet-r"])
def test_class_lists_of_folder_datasets_are_sorted(name: str) -> None:
    assert list(class_names(name)) == sorted(class_names(name))


def test_wordnet_ids_equal_those_of_timm() -> None:
    from timm.data import ImageNetInfo

    assert list(class_names("imagenet")) == ImageNetInfo("imagenet-1k").label_names()
    assert set(class_names("tiny-imagenet")) < set(class_names("imagenet")) > set(class_names("imagenet-r"))


def test_flower_names_equal_those_of_torchvision() -> None:
    from torchvision.datasets import Flowers102

    assert list(class_names("flowers102")) == Flowers102.classes


def test_classes_are_found_by_any_spelling_and_other_names_are_refused() -> None:
    labels = Labels("oxford-pets")
    assert labels.of("american_bulldog", Path("x")) == labels.of("American Bulldog", Path("x")) == 1
    with pytest.raises(
        UserError, match=r"annotations/test\.txt has the class 'lion', which is not a class of oxford-pets"
    ):
        labels.of("lion", Path("annotations/test.txt"))


def test_hub_order_of_caltech101_includes_the_background() -> None:
    names = hub_class_names("caltech101")
    assert names.index("") == 4 and sorted(filter(None, names)) == sorted(class_names("caltech101"))


@pytest.mark.skipif(not FACTS.is_dir(), reason="the lists of other projects are not next to this checkout")
@pytest.mark.parametrize(
    ("name", "other", "differing"),
    [
        ("flowers102", "flowers", 4),  # and for "-", "?"; air plant for ball moss
        ("oxford-pets", "pets", 0),
        ("caltech101", "caltech101_vtab", 13),
    ],
)
def test_labels_agree_with_clip_benchmark(name: str, other: str, differing: int) -> None:
    listed = json.loads((FACTS / "prompts_clip_benchmark.json").read_text(encoding="utf-8"))["classnames"][other]
    ours, theirs = list(map(normalised, hub_class_names(name))), list(map(normalised, listed))
    assert len(ours) == len(theirs)
    assert sum(a != b for a, b in zip(ours, theirs, strict=True)) <= differing
    places = {word: place for place, word in enumerate(ours)}
    assert all(places[word] == place for place, word in enumerate(theirs) if word in places)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not next to this checkout")
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("caltech101", "caltech101"),
        ("cifar10", "cifar10"),
        ("cifar100", "cifar100"),
        ("stl10", "stl10"),
        ("tiny-imagenet", "tiny_imagenet"),
    ],
)
def test_real_folder_names_equal_the_class_list(name: str, folder: str) -> None:
    assert sorted(path.name for path in (REAL / folder).iterdir()) == sorted(class_names(name))
