"""Tests of prompt sources: all classes have names, and only the known errors of published code occur."""

import re
from pathlib import Path

import pytest

from robustbench_vlm.datasets.prompts import PROMPT_SOURCES
from robustbench_vlm.datasets.prompts.base import PromptRow, task_of
from robustbench_vlm.datasets.published import class_names

ROWS = [(source, name) for source in PROMPT_SOURCES.names() for name in PROMPT_SOURCES.load(source)]
CARS = {
    "Audi S4 Sedan",
    "Bentley Continental GT Coupe",
    "Dodge Caliber Wagon",
    "Dodge Durango SUV",
    "Ford F 150 Regular Cab",
    "Honda Odyssey Minivan",
    "Volkswagen Golf Hatchback",
}
TWINS = {
    ("agft", "imagenet"): {"cardigan", "crane", "maillot"},
    ("tecoa", "imagenet"): {"cardigan", "crane", "maillot"},
    ("tga", "imagenet"): {"cardigan", "crane", "maillot"},
    ("agft", "stanford-cars"): CARS,
    ("tecoa", "stanford-cars"): {name.lower() for name in CARS},
    ("tga", "stanford-cars"): {name.lower() for name in CARS},
    ("fare", "imagenet"): {"missile", "sunglasses"},
    ("fare", "imagenet-sketch"): {"missile", "sunglasses"},
}
"""(prompt source, dataset) -> the class names that two classes share in the published code."""


def _texts(source: str, name: str):  # type: ignore[no-untyped-def]
    return task_of(PROMPT_SOURCES.load(source)[name], class_names(name))


@pytest.mark.parametrize(("source", "name"), ROWS)
def test_classes_share_a_prompt_only_if_published_code_has_that_error(source: str, name: str) -> None:
    classes = _texts(source, name).classes
    assert {each for each in classes if classes.count(each) > 1} == TWINS.get((source, name), set())
    assert all((each.strip() and not re.search(r"[_{}]", each)) or source == "fare" for each in classes)


def test_trusted_prompts_are_unique_even_in_lower_case() -> None:
    for name in PROMPT_SOURCES.load("trusted"):
        classes = [each.lower().strip() for each in _texts("trusted", name).classes]
        assert len(set(classes)) == len(classes), name


def test_caltech101_faces_are_merged_by_trusted_and_agft_only() -> None:
    for source in ("trusted", "agft"):
        found = _texts(source, "caltech101")
        assert len(found.classes) == 100 and found.classes[0] == "person"
        assert found.merged[:3] == (0, 0, 1) and max(found.merged) == 99
    assert len(_texts("tecoa", "caltech101").classes) == 101 and not _texts("tecoa", "caltech101").merged


def test_examples_of_exact_class_names_and_templates() -> None:
    assert _texts("tecoa", "pcam").classes[0] == "Tthis is a photo of healthy lymph node tissue."
    assert "cyclamen " in _texts("agft", "flowers102").classes and "cyclamen" in _texts("trusted", "flowers102").classes
    assert _texts("agft", "fgvc-aircraft").classes[0] == "Boeing 707-320"
    assert _texts("tecoa", "fgvc-aircraft").classes[0] == "boeing 707-320"
    assert _texts("tecoa", "cifar10").prompt == "This is a photo of a {}"
    assert len(_texts("fare", "imagenet").prompt) == 80 and "aquarium_fish" in _texts("fare", "cifar100").classes


def test_merged_class_has_the_index_of_its_first_raw_class() -> None:
    row = PromptRow("{}", names={"b": "same", "d": "same"}, one_class=("b", "d"))
    found = task_of(row, ("a", "b", "c", "d", "e"))
    assert (found.classes, found.merged) == (("a", "same", "c", "e"), (0, 1, 2, 1, 3))
    twins = task_of(PromptRow("{}", names={"b": "same", "d": "same"}), ("a", "b", "c", "d"))
    assert (twins.classes, twins.merged) == (("a", "same", "c", "same"), ())


def test_facts_file_names_its_sources() -> None:
    text = (Path(task_of.__code__.co_filename).parent / "facts.json").read_text(encoding="utf-8")
    assert "0031a8f" in text and "48de38c" in text
