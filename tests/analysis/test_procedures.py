"""Tests of the published evaluations: the attacked model, the precision of the images, and what counts as correct."""

import importlib
import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vlm.analysis import procedures
from robustbench_vlm.analysis.diagnose import final_images
from robustbench_vlm.analysis.procedures import PROCEDURES, correct_as_published, find_procedure, published_images
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.pgd import pgd_attack
from robustbench_vlm.cli.kinds import document
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.clipure import frozen_logits
from robustbench_vlm.test_time.defended_model import DefendedClassifier, defended_model

CLIP, TEXTURES, COUNT = load_model("clip", "mini"), DATASETS.load("textures"), 3
EPS = Fraction(5, 255)


def attacked(name: str) -> tuple[DefendedClassifier, Batch]:
    source, made = TEXTURES.open(), defended_model(f"{name}+clip", lambda reference: CLIP, "clip")
    assert made is not None
    images, labels = source.read(range(COUNT)).float() / 255, torch.tensor(source.labels[:COUNT])
    keys = sample_keys(0, "textures", source.ids[:COUNT])
    batch = Batch(images, labels, keys, Threat("Linf", EPS), torch.full_like(labels, len(TEXTURES.classes)))
    return made.classifier(TEXTURES.prompts).of_samples(keys), batch


def short(attack: Attack, steps: int = 2) -> Attack:
    changed = [{**stage.parameters, "steps": steps, "targets": 1} for stage in attack.stages]
    if len(changed) == 1:
        del changed[0]["targets"]
    stages = (replace(stage, parameters=each) for stage, each in zip(attack.stages, changed, strict=True))
    return replace(attack, stages=tuple(stages))


def images_of(name: str) -> tuple[DefendedClassifier, Batch, Tensor]:
    classifier, batch = attacked(name)
    procedure = find_procedure(name)
    shorter = replace(procedure, attack=short(procedure.attack))
    return classifier, batch, published_images(classifier, batch, shorter, batch_size=8)


def test_every_bundled_defense_has_a_published_evaluation() -> None:
    assert set(PROCEDURES) == set(TEST_TIME_DEFENSES.table)
    with pytest.raises(UserError, match=r"unknown published evaluation of the test-time defense 'tcc'\. Did you mean"):
        find_procedure("tcc")


def test_show_names_the_published_evaluation() -> None:
    shown = document("test-time-defense", "csr", "mini")["published_evaluation"]
    assert shown["attack"] == PROCEDURES["csr"].summary and "formula" in shown["not_repeated_or_confirmed"][1]


@pytest.mark.parametrize("name", ["a-tpt@16", "csr", "dbd", "r-tpt@16", "ttc"])
def test_images_are_inside_the_radius_and_on_the_8_bit_grid_if_the_code_saves_them(name: str) -> None:
    _, batch, images = images_of(name)
    levels = 255 * images
    on_grid = bool(torch.allclose(levels, levels.round(), atol=1e-3))
    assert on_grid == PROCEDURES[name].is_8_bit
    # Truncation to 8 bits can move a pixel down by almost one level beyond the radius.
    slack = 1 if PROCEDURES[name].is_8_bit else 0
    assert (255 * (images - batch.images)).abs().max() <= 5 + slack + 1e-3
    assert (images - batch.images).abs().max() > 0


@pytest.mark.parametrize("name", ["et3", "clipure-cos@short"])
def test_autoattack_changes_only_images_that_it_breaks(name: str) -> None:
    classifier, batch = attacked(name)
    procedure = replace(PROCEDURES[name], attack=short(PROCEDURES[name].attack, steps=5))
    wide = replace(batch, threat=Threat("Linf", Fraction(20, 255)))
    images = published_images(classifier, wide, procedure, batch_size=8)
    with torch.no_grad():
        model = classifier if procedure.is_frozen else classifier.plain
        broken = model(images).argmax(dim=1) != batch.labels
    changed = (images != batch.images).flatten(1).any(dim=1)
    assert broken.any() and torch.equal(changed, broken)


def test_the_attack_sees_the_model_without_the_defense() -> None:
    classifier, batch, images = images_of("dbd")
    (stage,) = short(PROCEDURES["dbd"].attack).stages
    plain = final_images(classifier.plain, batch, stage, batch_size=8)
    assert torch.equal(images, (255 * plain).floor() / 255)
    assert PROCEDURES["dbd"].attack.stages[0].parameters["steps"] == 100


@pytest.mark.parametrize("name", ["a-tpt@16", "r-tpt@16"])
def test_the_attack_on_tuned_prompts_sees_those_of_the_previous_image(name: str) -> None:
    classifier, batch, images = images_of(name)
    (stage,) = short(PROCEDURES[name].attack).stages
    plain = (255 * final_images(classifier.plain, batch, stage, batch_size=1)).floor() / 255
    assert torch.equal(images[0], plain[0])
    assert not torch.equal(images[1:], plain[1:])


def test_a_misclassified_clean_image_counts_if_the_attacked_image_is_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, batch = attacked("et3")
    with torch.no_grad():
        predicted = classifier(batch.images).argmax(dim=1)
    labels = (predicted + torch.tensor([0, 1, 1])) % len(TEXTURES.classes)
    other = replace(batch, labels=labels)
    monkeypatch.setattr(procedures, "published_images", lambda *arguments, **options: batch.images)
    found = correct_as_published(classifier, other, PROCEDURES["et3"], batch_size=8)
    assert found.tolist() == [True, False, False]


def test_the_gradient_of_clipure_treats_directions_as_constants() -> None:
    classifier, batch = attacked("clipure-cos@short")
    frozen = classifier.with_defense(replace(classifier.defense, logits=frozen_logits))
    leaf = batch.images.clone().requires_grad_()
    whole, part = classifier(leaf), frozen(leaf)
    assert torch.allclose(whole, part)
    first, second = (torch.autograd.grad(each[:, 0].sum(), leaf)[0] for each in (whole, part))
    assert not torch.allclose(first, second)
    assert pgd_attack(100, iterate="final").stages[0].parameters == PROCEDURES["dbd"].attack.stages[0].parameters


def test_the_table_of_the_benchmark_counts_the_worst_case_over_complete_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("procedures")
    ways = {"clean": "1110", "published": "1101", "transfer": "1000", "loop": "0100", "constant": "1100"}
    rows: list[dict[str, Any]] = []
    for dataset, (way, correct) in itertools.product(("shapes", "colours"), ways.items()):
        # A second run of the benchmark adds samples to the row of the first run.
        for part in (correct[:2], correct[2:]):
            benchmark.add(rows, ("ttc+clip", way, dataset), part, 0.5)
    benchmark.add(rows, ("ttc+clip", "clean", "shapes"), "0", 0.5)
    # A column without all datasets is not part of the table.
    benchmark.add(rows, ("ttc+clip", "eot", "shapes"), "00", 0.5)
    assert [row["seconds"] for row in rows[:2]] == [1.5, 1.0]
    header, ((model, n, *cells),) = benchmark.table({"rows": rows, "passes": {"ttc+clip": "6 + 2"}})
    assert (model, n, len(header)) == ("`ttc+clip`", "8", 10)
    counts = [each.split(" ")[0] for each in cells]
    partly = [row for row in rows if row["way"] != "loop"]
    assert benchmark.table({"rows": partly, "passes": {}})[1][0][-2] == "not measured"
    assert counts == ["75.0", "75.0", "25.0", "25.0", "50.0", "not", "0.0", "6"]
