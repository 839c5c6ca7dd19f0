"""Tests of attack files and of the ways to differentiate a classifier that hides its gradient."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.attack_file import ALGORITHMS, AttackFile, StageEntry, attack_of, write_attack_file
from robustbench_vlm.attacks.base import GradientMode
from robustbench_vlm.attacks.eot import check_draws, with_draws
from robustbench_vlm.attacks.losses import LOSSES
from robustbench_vlm.attacks.model import with_gradient
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve

STAGE = {"name": "one", "algorithm": "apgd"}
FILE: dict[str, Any] = {"attack_file": 1, "name": "mine", "stages": [STAGE]}


def written(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "attack.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_file_gives_the_attack_that_was_written(tmp_path: Path) -> None:
    stages = tuple(StageEntry(name, name, {}, "loop", 2) for name in ALGORITHMS)
    content = AttackFile(1, "mine", (*stages, StageEntry("plain", "pgd", {"steps": 3, "relative_step": 0.5})), "all")
    write_attack_file(content, tmp_path / "mine.json")
    found = load_attack(str(tmp_path / "mine.json"))
    assert found == attack_of(content)
    assert found.stages[-1].parameters["steps"] == 3 and found.stages[-1].gradient_mode is None
    assert found.stages[0].gradient_mode == GradientMode("loop", "loop", 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack_file": 2}, "attack_file: Input should be 1"),
        ({"code": "os:system"}, "unknown field"),
        ({"name": "autoattack"}, "belongs to an attack of this package"),
        ({"name": "pgd-7"}, "belongs to an attack of this package"),
        ({"name": "../mine"}, "name must be lower case letters"),
        ({"stages": []}, "1 to 100 stages"),
        ({"stages": [STAGE, STAGE]}, "each with its own name"),
        ({"stages": [{**STAGE, "function": "os:system"}]}, "unknown field"),
        ({"stages": [{**STAGE, "algorithm": "os:system"}]}, "unknown algorithm 'os:system'"),
        ({"stages": [{**STAGE, "parameters": {"step": 3}}]}, "unknown parameter 'step'. Did you mean steps?"),
        ({"stages": [{**STAGE, "parameters": {"steps": 10**9}}]}, "steps must be an integer from 1 to 10000"),
        ({"stages": [{**STAGE, "parameters": {"steps": True}}]}, "steps must be an integer"),
        ({"stages": [{**STAGE, "parameters": {"loss": "os:system"}}]}, "loss must be one of ce,"),
        ({"stages": [{**STAGE, "gradient": "sideways"}]}, "gradient: Input should be 'loop'"),
        ({"stages": [{**STAGE, "gradient": "transfer", "draws": 2}]}, "a mean over draws needs the gradient"),
        ({"stages": [{**STAGE, "gradient": "loop", "draws": 0}]}, "draws must be an integer from 1 to 1000"),
        ({"stages": [{**STAGE, "parameters": {"loss": "targeted-dlr"}}]}, "'targeted-dlr' needs target classes"),
        (
            {"stages": [{**STAGE, "algorithm": "pgd", "parameters": {"loss": "targeted-dlr"}}]},
            "'targeted-dlr' needs target classes",
        ),
        ({"stages": [{**STAGE, "algorithm": "malt", "parameters": {"targets": 0}}]}, "an integer from 1 to 1000"),
        ({"stages": [{**STAGE, "algorithm": "fab-t", "parameters": {"targets": 0}}]}, "an integer from 1 to 1000"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, FILE | change)
    with pytest.raises(UserError) as error:
        load_attack(path)
    assert message in str(error.value) and path in str(error.value)


def test_a_file_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"the attack file no/such\.json does not exist"):
        load_attack("no/such.json")


def test_a_folder_is_not_an_attack_file(tmp_path: Path) -> None:
    (tmp_path / "mine.json").mkdir()
    with pytest.raises(UserError, match=r"mine\.json is not a regular file"):
        load_attack(str(tmp_path / "mine.json"))


def test_a_run_refuses_different_attacks_with_one_name_and_counts_equal_attacks_once(tmp_path: Path) -> None:
    weak, strong = {**STAGE, "parameters": {"steps": 2}}, {**STAGE, "parameters": {"steps": 20}}
    paths = []
    for name, stage, text in (("a", weak, ""), ("b", weak, "other words"), ("c", strong, "")):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(FILE | {"stages": [stage], "description": text}))

    def cells(*chosen: Path) -> tuple[Cell, ...]:
        names = tuple(map(str, chosen))
        return resolve(Request(models=("clip",), attacks=names, datasets=("shapes",), samples=2)).cells

    assert len(cells(*paths[:2])) == 1
    with pytest.raises(UserError, match=r"a\.json and .*c\.json are different attacks with the name 'mine'"):
        cells(*paths)


def test_the_stages_of_an_attack_file_work_with_draws() -> None:
    stages = tuple(StageEntry(way, "pgd", {"steps": 2}, way, 1) for way in ("loop", "transfer"))
    attack = attack_of(AttackFile(1, "mine", stages))
    check_draws(attack)
    assert [stage.gradient_mode.draws for stage in with_draws(attack, 4).stages] == [4, 1]


WEIGHTS = torch.randn(3 * 4 * 4, 3, generator=torch.Generator().manual_seed(0))
IMAGES = 0.3 + 0.4 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def linear(images: Tensor) -> Tensor:
    return images.flatten(1) @ WEIGHTS


def rounded(images: Tensor) -> Tensor:
    return (linear(images) * 100).round() / 100


def gradient(mode: GradientMode) -> tuple[Tensor, Tensor]:
    classifier = with_gradient(ClassifierWithSurrogate(as_classifier(rounded), as_classifier(linear)), mode)
    leaf = IMAGES.clone().requires_grad_()
    logits = classifier(leaf)
    (found,) = torch.autograd.grad((logits * torch.tensor([1.0, -2.0, 3.0])).sum(), leaf)
    return logits, found.flatten(1)


def test_the_logits_are_those_of_the_classifier_and_the_gradient_is_useful() -> None:
    exact = (WEIGHTS @ torch.tensor([1.0, -2.0, 3.0])).expand(2, -1)
    logits, found = gradient(GradientMode("straight-through", "straight-through"))
    torch.testing.assert_close(logits, rounded(IMAGES))
    torch.testing.assert_close(found, exact)
    logits, found = gradient(GradientMode("estimated", "estimated", 16))
    torch.testing.assert_close(logits, rounded(IMAGES))
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.9
    logits, found = gradient(GradientMode("loop", "loop", 3))
    assert not found.any()


def test_a_model_without_a_defense_has_no_transfer_attack() -> None:
    with pytest.raises(UserError, match="the gradient 'transfer' needs a defense or a surrogate"):
        with_gradient(as_classifier(linear), GradientMode("transfer", "transfer"))


def test_the_soft_label_loss_is_the_cross_entropy_of_the_smoothed_label() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, -torch.inf]])
    labels = torch.tensor([1])
    expected = torch.nn.functional.cross_entropy(logits[:, :3], labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(LOSSES["soft-ce"](logits, labels, labels), expected)
