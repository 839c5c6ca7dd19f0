"""Test contracts: all registered values of this package pass, and a faulty dataset fails."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.analysis.contracts import CONTRACTS, check
from robustbench_vlm.attacks import ATTACKS
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, one_stage_attack
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.models.card import bundled_names
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.tracks import TRACKS

REGISTERED = [
    *(("dataset", name, "mini") for name in DATASETS.table),
    # The stages of these attacks are checked as separate attacks. The 20,000 queries of Square Attack take too long.
    *(("attack", name, "mini") for name in ATTACKS.table if name not in ("autoattack-plus", "autoattack-rand")),
    *(("defense", name, "mini") for name in DEFENSES.table),
    *(("test-time-defense", name, "mini") for name in TEST_TIME_DEFENSES.table),
    *(("track", name, "mini") for name in TRACKS.table),
    *(("model", name, track) for track in TRACKS.table for name in bundled_names(track)),
]


@pytest.mark.parametrize(("kind", "name", "track"), REGISTERED)
def test_every_registered_value_passes_its_contracts(kind: str, name: str, track: str, library: Path) -> None:
    failed = {contract.name for contract in check(kind, name, track=track) if not contract.passed}
    # The copies of published datasets in these tests have images of only a few classes.
    assert failed <= {"every class has samples"} and (not failed or name in PUBLISHED)


def test_a_card_file_passes_its_contracts(make_card: Callable[..., Path]) -> None:
    assert all(contract.passed for contract in check("model", str(make_card())))


def test_unknown_kinds_and_names_raise_user_error() -> None:
    with pytest.raises(UserError, match=r"unknown kind 'modle'\. Did you mean model"):
        check("modle", "clip")
    for kind in CONTRACTS:
        with pytest.raises(UserError, match="nonesuch"):
            check(kind, "nonesuch")


class Faulty:
    """A source with repeated ids, too many labels, and images that differ between calls."""

    ids, labels = ("a", "a", "b"), (0, 1, 2)
    calls = 0

    def read(self, indices: list[int]) -> object:
        import torch

        Faulty.calls += 1
        return torch.full((len(indices), 3, 4, 4), Faulty.calls, dtype=torch.uint8)


FAULTY = Dataset("other-name", ("x", "x"), "a {}.", "test_contracts:Faulty")


def test_a_faulty_dataset_fails_its_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "robustbench_vlm.analysis.contracts.DATASETS", Registry("dataset", {"faulty": "test_contracts:FAULTY"})
    )
    failed: list[CheckResult] = [contract for contract in check("dataset", "faulty") if not contract.passed]
    assert {contract.name for contract in failed} == {
        "the dataset has the name under which it is registered",
        "every class has a unique prompt",
        "ids are unique",
        "labels are class indices",
        "every class has samples",
        "the dataset returns the same images when it is read again",
        "an image depends neither on the order of images nor on other images",
        "images differ",
    }


def whole_batch(classifier: Classifier, batch: Batch, *, batch_size: int) -> Outcome:
    """Move the images along the mean of three gradients of the whole batch, and report no passes."""
    images = batch.images.clone().requires_grad_()
    loss = sum(classifier(images).logsumexp(dim=1).sum() for _ in range(3))
    (gradient,) = torch.autograd.grad(loss, images)
    none = torch.zeros_like(batch.labels)
    return Outcome((batch.images + gradient.sign() * float(batch.threat.eps)).clamp(0, 1), none, none)


FAULTY_ATTACK = one_stage_attack(Stage("whole", "whole", "test_contracts:whole_batch"), "ignores the batch size")


def test_an_attack_that_ignores_the_batch_size_and_reports_wrong_passes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_vlm.analysis.attack_contracts.load_attack", lambda name: FAULTY_ATTACK)
    failed = {contract.name for contract in check("attack", "whole") if not contract.passed}
    assert failed >= {
        "no call of the model has more images than the batch size",
        "the attack reports the passes that it uses",
    }


def test_a_defense_without_a_paper_is_unusual_but_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    unpublished = dataclasses.replace(DEFENSES.load("tecoa"), paper="")
    monkeypatch.setattr("robustbench_vlm.analysis.contracts.DEFENSES", SimpleNamespace(load=lambda name: unpublished))
    checks = check("defense", "mine")
    assert all(each.passed for each in checks) and checks[-1].status == "warn"
