"""Tests of autopsies: masked models fall, honest models do not rise, and an attack file repeats the result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_models import HONEST, MASKED, small_network
from torch import Tensor, nn

from robustbench_vlm import attack, evaluate
from robustbench_vlm.analysis.attack_classifier import batch_in_memory
from robustbench_vlm.analysis.autopsy import Autopsy, autopsy, autopsy_classifier, with_fixed_draws
from robustbench_vlm.analysis.autopsy_search import Subject, first_samples, hides_gradient
from robustbench_vlm.analysis.autopsy_space import search_space, smaller, with_steps
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.attack_file import attack_of, write_attack_file
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.classifier_interface import PlainClassifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.request import Request

EPS, REPORTED, HELD_OUT = "24/255", 16, 12
Base = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def base() -> Base:
    """Return a network, images and labels."""
    return small_network(REPORTED + HELD_OUT)


def examined(model: nn.Module, base: Base, budget: int = 3000) -> Autopsy:
    network, images, labels = base
    return autopsy_classifier(
        model, images, labels, eps=EPS, surrogate=network, held_out=HELD_OUT, budget=budget, name="masked"
    )


def robust_base(base: Base) -> int:
    network, images, labels = base
    found = attack(network, images[:REPORTED], labels[:REPORTED], eps=EPS, attack="pma")
    return int(found.robust.sum())


@pytest.mark.parametrize(
    ("name", "budget"), [("quantised-16", 6000), ("no-grad", 3000), ("jpeg", 2000), ("noise", 200)]
)
def test_a_masked_model_falls_to_the_base_and_the_file_repeats_the_attack(
    name: str, budget: int, base: Base, tmp_path: Path
) -> None:
    network, images, labels = base
    (wrapped,) = (each.wrap(network).eval() for each in (*HONEST, *MASKED) if each.name == name)
    found = examined(wrapped, base, budget)
    assert round(found.robust.value * REPORTED) <= robust_base(base)
    write_attack_file(found.attack, tmp_path / "found.json")
    batch = batch_in_memory(wrapped, images[:REPORTED], labels[:REPORTED], Threat("Linf", parse_eps(EPS)), seed=0)
    again = attack(
        with_fixed_draws(wrapped, batch),
        images[:REPORTED],
        labels[:REPORTED],
        eps=EPS,
        attack=str(tmp_path / "found.json"),
        surrogate=network,
    )
    assert again.clean_accuracy.value == found.clean.value
    assert again.robust_accuracy.value == found.robust.value
    assert int(again.passes.sum()) == found.attack_passes


def test_an_honest_model_does_not_rise_and_the_reported_samples_do_not_change_the_attack(base: Base) -> None:
    network, images, labels = base
    found = examined(network, base)
    assert round(found.robust.value * REPORTED) <= robust_base(base)
    attacks, samples = ([getattr(each, name) for each in found.rounds] for name in ("attacks", "samples"))
    assert attacks == sorted(attacks, reverse=True) and samples == sorted(samples)
    assert samples[-1] == found.held_out <= HELD_OUT
    assert found.rounds[-1].passes <= found.search_passes
    other = torch.cat([images[:REPORTED].flip(3), images[REPORTED:]])
    assert examined(network, (network, other, labels), 400).attack == examined(network, base, 400).attack


def test_only_models_that_round_or_detach_have_the_gradient_identity(base: Base) -> None:
    network, images, labels = base
    keys, classes = torch.arange(4), torch.full((4,), 10)
    batch = Batch(images[:4], labels[:4], keys, Threat("Linf", parse_eps(EPS)), classes)
    found = [
        model.name
        for model in (*HONEST, *MASKED)
        if hides_gradient(Subject("", PlainClassifier(model.wrap(network)), batch))
    ]
    assert {"quantised-16", "bit-depth-3", "jpeg", "rounded-logits", "no-grad"} <= {*found}
    assert not {model.name for model in HONEST} & {*found}


def test_the_space_has_every_way_and_smaller_attacks_need_fewer_passes() -> None:
    space = search_space(("transfer", "loop", "constant", "estimated"), is_random=True, has_objective=True)
    assert {"apgd-objective", "apgd-other-start", "apgd-transfer-start"} <= {each.algorithm for each in space}
    assert {each.gradient for each in space} == {"transfer", "loop", "constant", "estimated"}
    assert len({each.name for each in space}) == len(space)
    assert {each.draws for each in space} == {1, 4}
    for each in space:
        (stage,) = attack_of_one(with_steps(each, 8)).stages
        for less in smaller(with_steps(each, 8)):
            (other,) = attack_of_one(less).stages
            calls = [sum(some.calls(some.parameters, 10)) for some in (other, stage)]
            assert calls[0] < calls[1] or less.draws < each.draws


def attack_of_one(entry: Any) -> Any:
    from robustbench_vlm.attacks.attack_file import AttackFile

    return attack_of(AttackFile(1, "one", (entry,)))


def test_the_first_samples_come_from_all_datasets_in_turn(base: Base) -> None:
    network, images, labels = base

    def subject(count: int) -> Subject:
        keys, classes = torch.arange(count), torch.full((count,), 10)
        batch = Batch(images[:count], labels[:count], keys, Threat("Linf", parse_eps(EPS)), classes)
        return Subject(str(count), PlainClassifier(network), batch)

    parts = first_samples([subject(4), subject(1), subject(3)], 6)
    assert [each.batch.keys.tolist() for each in parts] == [[0, 1, 2], [0], [0, 1]]


ARGUMENTS = ["autopsy", "ttc+clip", "--dataset", "shapes", "--samples", "3", "--held-out", "2", "--budget", "200"]


def test_the_command_writes_a_file_that_run_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, plot = tmp_path / "found.json", tmp_path / "found.png"
    assert run_command([*ARGUMENTS, "--out", str(file), "--plot", str(plot), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert found["attack"]["stages"][0]["name"] == load_attack(str(file)).stages[0].name
    again = evaluate("ttc+clip", str(file), datasets="shapes", samples=3, out=tmp_path / "runs", workers=1).to_pandas()
    assert again["robust"].iloc[0] == found["robust"]["value"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "all"], "needs samples that are not reported"),
        (["--model", "clip"], "for one model, got 2"),
        (["--held-out", "0"], "--held-out must be a positive integer, got 0"),
        (["--out", "found.toml"], "must end in .json"),
    ],
)
def test_wrong_arguments_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*ARGUMENTS, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_request_without_other_samples_is_refused() -> None:
    with pytest.raises(UserError, match="no samples other than the 100000 that are reported"):
        autopsy(Request(models=("clip",), datasets=("colours",), samples=100_000))
