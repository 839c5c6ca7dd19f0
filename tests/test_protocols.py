"""Tests of protocols: samples, iterate, prompts, identity and descriptions."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.mini import SHAPES
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.protocols.mini import MINI, MINI_QUICK
from robustbench_vlm.tracks import ZEROSHOT15


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 60), st.randoms())
@settings(deadline=None)
def test_a_smaller_selection_is_the_start_of_a_larger_one(labels, count, random) -> None:
    ids = [f"{number:04d}" for number in range(len(labels))]
    small = dataclasses.replace(MINI, samples=count).select(ids, labels)
    large = dataclasses.replace(MINI, samples=None).select(ids, labels)
    assert large[: len(small)] == small and sorted(large) == list(range(len(ids)))
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = dataclasses.replace(MINI, samples=count).select(
        [ids[index] for index in order], [labels[index] for index in order]
    )
    assert [order[index] for index in shuffled] == small


@given(st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_classes_alternate_in_the_standard_order(count: int) -> None:
    labels = [number % 7 for number in range(700)]
    chosen = dataclasses.replace(MINI, samples=count).select([str(number) for number in range(700)], labels)
    counts = [sum(labels[index] == label for index in chosen) for label in range(7)]
    assert max(counts) - min(counts) <= 1


def test_mini_quick_uses_the_first_samples_of_mini() -> None:
    source = SHAPES.open()
    whole, quick = MINI.select(source.ids, source.labels), MINI_QUICK.select(source.ids, source.labels)
    assert len(whole) >= 200 and whole[: len(quick)] == quick


def test_protocol_sets_iterate_and_prompt() -> None:
    pgd = Stage("pgd", "pgd", "m:f", {"iterate": "best", "steps": 2}, adjustable=("iterate",))
    attack = Attack("a", (pgd, Stage("square", "square", "m:f", {})), "")
    final = dataclasses.replace(MINI, iterate="final", prompts={"shapes": "one {}"})
    adapted = final.adapt_attack(attack)
    assert [dict(stage.parameters) for stage in adapted.stages] == [{"iterate": "final", "steps": 2}, {}]
    assert final.adapt_dataset(SHAPES).prompts[0] == "one circle"
    assert fingerprint(final) != fingerprint(MINI)


def test_protocol_sets_step_size_and_mean_loss_of_pgd_only() -> None:
    half = dataclasses.replace(MINI, step_size="1/255", mean_over=128)
    (stage,) = half.adapt_attack(load_attack("pgd-20")).stages
    assert stage.parameters["step_size"] == "1/255" and stage.parameters["mean_over"] == 128
    assert "relative_step" not in stage.parameters and stage.parameters["loss"] == "softmax-ce"
    # FGSM always has one step of eps.
    (fgsm,) = half.adapt_attack(load_attack("fgsm")).stages
    assert "step_size" not in fgsm.parameters and fgsm.parameters["relative_step"] == 1.0
    assert "mean_over" not in half.adapt_attack(load_attack("cw")).stages[0].parameters
    assert half.adapt_attack(load_attack("autoattack")) == load_attack("autoattack")


def test_protocol_step_size_does_not_apply_to_l2() -> None:
    half, pgd = dataclasses.replace(MINI, step_size="1/255"), load_attack("pgd-20")
    assert half.adapt_attack(pgd, "L2") == MINI.adapt_attack(pgd) != half.adapt_attack(pgd, "Linf")


def test_stages_without_mean_over_keep_their_parameters() -> None:
    foreign = Attack("a", (Stage("walk", "walk", "m:f", {"iterate": "best"}, adjustable=("iterate",)),), "")
    adapted = dataclasses.replace(MINI, iterate="final", mean_over=128).adapt_attack(foreign)
    assert dict(adapted.stages[0].parameters) == {"iterate": "final"}


def test_newer_fields_at_their_default_do_not_change_the_identity() -> None:
    assert set(MINI.identity) == {"name", "version", "samples", "seed", "image_size", "precision", "iterate", "prompts"}
    assert dataclasses.replace(MINI, description="other words").identity == MINI.identity
    for change in ({"step_size": "1/255"}, {"mean_over": 2}, {"prompt_source": "agft"}, {"attacks": {"cw": "agft-cw"}}):
        assert set(dataclasses.replace(MINI, **change).identity) - set(MINI.identity) == set(change)


REAL = ("trusted", "agft-2026", "fare-2024", "tecoa-2023", "tga-2024")


@pytest.mark.parametrize("name", REAL)
def test_protocols_of_the_real_track_adapt_all_datasets_and_attacks(name: str) -> None:
    protocol: Protocol = PROTOCOLS.load(name)
    for attack in ("autoattack", "cw", "pgd-20", "pgd-100"):
        assert protocol.adapt_attack(load_attack(protocol.attack_name(attack))).stages
    not_run = set()
    for dataset in ZEROSHOT15.datasets:
        try:
            adapted = protocol.adapt_dataset(DATASETS.load(dataset))
        except UserError as error:
            assert "use --protocol trusted" in str(error)
            not_run.add(dataset)
            continue
        small = dataset in ("cifar10", "cifar100", "stl10")
        assert (adapted.transform.resize is None) == (small and name != "tga-2024")
    assert not_run == ({"caltech256"} if name == "fare-2024" else set())


def test_trusted_protocol_keeps_the_published_datasets_unchanged() -> None:
    for name in DATASETS.names():
        dataset = DATASETS.load(name)
        assert PROTOCOLS.load("trusted").adapt_dataset(dataset) == dataset


def test_diff_protocol_describes_the_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diff", "protocol", "trusted", "agft-2026"]) == 0
    words = capsys.readouterr().out
    for sentence in (
        "trusted: 1000",
        "agft-2026: all",
        "agft-2026: float16",
        "shorter side to 224, bilinear, centre crop of 224",
        "apgd-dlr-10",
        "stanford-cars: 196 of 196 class names",
        "for example 'AM General Hummer SUV 2000'",
        "Audi S4 Sedan",
        "cardigan, crane, maillot",
    ):
        assert sentence in words
    assert "dtd" not in words
    assert run_command(["diff", "protocol", "tecoa-2023", "tga-2024", "--json"]) == 0
    absent, pictures = json.loads(capsys.readouterr().out)["differences"]
    assert (absent["first"], absent["second"]) == ("hateful-memes", "tiny-imagenet")
    assert pictures["what"] == "images of CIFAR and STL10" and "both sides to 224" in pictures["second"]
    assert run_command(["diff", "protocol", "mini", "mini"]) == 0
    assert capsys.readouterr().out == "mini and mini have no differences\n"
    assert run_command(["diff", "attack", "cw", "fgsm"]) == 2


def test_show_protocol_has_fingerprint_prompts_and_duplicate_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", "protocol", "agft-2026", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["fingerprint"]) == 64 and found["datasets"]["caltech101"]["classes"] == 100
    assert len(found["datasets"]["stanford-cars"]["two_classes_with_one_prompt"]) == 7
    assert found["transform"] == "shorter side to 224, bilinear, centre crop of 224"
    assert found["small_transform"] == "pixels as stored" and "pictures" not in found
    assert run_command(["show", "protocol", "trusted"]) == 0
    assert "two_classes" not in capsys.readouterr().out
    assert run_command(["show", "protocol", "mini", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transform"] == "transform of each dataset"
