"""Attacks break the undefended bundled model, and the defended one stays robust; our stages match the official ones."""

from collections.abc import Callable

import pytest
import torch

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.protocols.mini import MINI
from robustbench_vlm.tracks import MINI as TRACK

Attacked = Callable[[str, str, str, int], Verdicts]


@pytest.fixture(scope="module")
def attacked() -> Attacked:
    def attack(model: str, dataset_name: str, name: str, count: int) -> Verdicts:
        dataset = DATASETS.load(dataset_name)
        source = dataset.open()
        chosen = MINI.select(source.ids, source.labels)[:count]
        batch = Batch(
            source.read(chosen).float() / 255,
            torch.tensor([source.labels[index] for index in chosen]),
            sample_keys(0, dataset.name, [source.ids[index] for index in chosen]),
            Threat(TRACK.norm, TRACK.standard_eps),
            torch.full((count,), len(dataset.classes)),
        )
        classifier = load_model(model, "mini").classifier(dataset.prompts)
        return attack_samples(classifier, batch, load_attack(name), batch_size=64)

    return attack


@pytest.mark.parametrize("dataset", ["textures", "backgrounds", "counting", "fine-grained"])
def test_attacks_break_nearly_every_sample_of_the_undefended_model(attacked: Attacked, dataset: str) -> None:
    worst = {name: attacked("clip", dataset, name, 40) for name in ("pgd-20", "autoattack")}
    clean = [stage != "clean" for stage in worst["pgd-20"].broken_by]
    assert sum(clean) >= 32
    assert worst["pgd-20"].robust.sum() <= 2
    assert worst["autoattack"].robust.sum() <= min(1, int(worst["pgd-20"].robust.sum()))


def test_the_defended_model_is_robust_on_a_dataset_on_which_the_undefended_one_is_not(attacked: Attacked) -> None:
    assert attacked("agft", "positions", "apgd-ce", 40).robust.sum() >= 28
    assert attacked("clip", "positions", "apgd-ce", 40).robust.sum() <= 2


@pytest.mark.parametrize("stage", ["apgd-ce", "apgd-t", "fab-t"])
def test_our_stages_are_as_strong_as_the_official_ones_on_the_bundled_model(attacked: Attacked, stage: str) -> None:
    ours, official = (attacked("agft", "shapes", name, 8).robust for name in (stage, f"pyautoattack:{stage}"))
    assert ours.sum() <= official.sum() + 1
    assert (ours == official).sum() >= len(ours) - 1
