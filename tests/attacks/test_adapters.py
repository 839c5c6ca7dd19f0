"""Tests of the adapters for pyautoattack and torchattacks."""

import sys
from dataclasses import replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
import torch
from made_up import halving_threat, network, samples

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import NORMS, Threat

MODEL = network("conv", 10)
BATCH = samples(MODEL, 10, halving_threat(MODEL, 10, "Linf"), 8)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9])
def test_pyautoattack_standard_runs_with_fewer_than_ten_classes(classes: int) -> None:
    model = network("conv", classes)
    batch = samples(model, classes, halving_threat(model, classes, "Linf"), 4)
    attack = load_attack("pyautoattack")
    verdict = attack_samples(model, batch, replace(attack, stages=attack.stages[:3]), batch_size=3)
    assert set(verdict.broken_by) <= {"", *(stage.name for stage in attack.stages)}
    assert (verdict.forward[verdict.robust] > 100).all() and (verdict.backward[verdict.robust] > 100).all()


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t"])
def test_pyautoattack_accepts_images_and_gradients_that_are_not_contiguous(name: str) -> None:
    def strided(images: torch.Tensor) -> torch.Tensor:
        return MODEL(images.transpose(2, 3).contiguous().transpose(2, 3) * 1)

    turned = replace(BATCH, images=BATCH.images.transpose(2, 3).contiguous().transpose(2, 3))
    assert not turned.images.is_contiguous()
    plain = attack_samples(MODEL, BATCH, load_attack(f"pyautoattack:{name}"), batch_size=8)
    assert (
        attack_samples(strided, turned, load_attack(f"pyautoattack:{name}"), batch_size=8).broken_by == plain.broken_by
    )


@pytest.mark.parametrize("name", ["pyautoattack:apgd-ce", "pyautoattack:fab-t"])
def test_pyautoattack_does_not_change_the_random_state_or_the_trace_function(name: str) -> None:
    state, trace = torch.random.get_rng_state(), sys.gettrace()
    first = attack_samples(MODEL, BATCH, load_attack(name), batch_size=8)
    assert torch.equal(torch.random.get_rng_state(), state) and sys.gettrace() is trace
    torch.rand(3)
    assert attack_samples(MODEL, BATCH, load_attack(name), batch_size=8).broken_by == first.broken_by


def test_a_zero_gradient_warning_of_pyautoattack_is_recorded_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    verdict = attack_samples(lambda images: MODEL(images.detach()) + 0 * images.sum(), BATCH, load_attack(
        "pyautoattack:apgd-dlr"), batch_size=8)  # fmt: skip
    assert all(notes == ("zero-gradient",) for notes in verdict.warnings)
    assert capfd.readouterr().err == ""


class Recorder:
    """An attack with the interface of torchattacks that records its constructor arguments."""

    made: dict[str, Any]

    def __init__(self, model: Any, eps: float = 8 / 255, alpha: float = 2 / 255, n_classes: int = 10, norm: str = "L1",
                 seed: int = 0) -> None:  # fmt: skip
        type(self).made = {"eps": eps, "alpha": alpha, "n_classes": n_classes, "norm": norm}
        self.model = model
        self.device = next(model.parameters()).device

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = images.clone().requires_grad_()
        self.model(images).sum().backward()
        return 1 - images.detach() + torch.rand(1)


class Wrapper:
    """A class with the interface of those of torchattacks that wrap other attacks."""

    def __init__(self, model: Any, attacks: Any) -> None:
        raise AssertionError


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchattacks")
    module.Recorder, module.Wrapper = Recorder, Wrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchattacks", module)


@pytest.mark.usefixtures("library")
def test_torchattacks_gets_the_threat_and_the_number_of_classes_of_the_dataset() -> None:
    state = torch.random.get_rng_state()
    verdict = attack_samples(MODEL, BATCH, load_attack("torchattacks:Recorder"), batch_size=3)
    eps = float(BATCH.threat.eps)
    assert Recorder.made == {"eps": eps, "alpha": pytest.approx(eps / 4), "n_classes": 10, "norm": "Linf"}
    assert (verdict.distance <= eps * (1 + 1e-5)).all()
    assert set(verdict.forward.tolist()) == {3} and set(verdict.backward.tolist()) == {1}
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.usefixtures("library")
def test_torchattacks_suggests_a_name_for_a_typo_and_refuses_wrappers_of_attacks() -> None:
    with pytest.raises(UserError, match="Did you mean Recorder"):
        load_attack("torchattacks:Recordr")
    with pytest.raises(UserError, match="constructor requires attacks"):
        load_attack("torchattacks:Wrapper")


def test_a_missing_torchattacks_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(UserError, match="pip install --no-deps torchattacks"):
        load_attack("torchattacks:PGD")


SLOW = {"JSMA", "AutoAttack", "Square"}


def test_norms_of_torchattacks_attacks() -> None:
    pytest.importorskip("torchattacks")
    norms = {name: load_attack(f"torchattacks:{name}").norms for name in ("PGD", "PGDL2", "CW", "APGD", "OnePixel")}
    assert norms == {"PGD": ("Linf",), "PGDL2": ("L2",), "CW": ("L2",), "APGD": NORMS, "OnePixel": NORMS}
    batch = replace(BATCH, threat=Threat("L2", Fraction(1, 2)))
    with pytest.raises(UserError, match="is for Linf, not for L2"):
        attack_samples(MODEL, batch, load_attack("torchattacks:PGD"), batch_size=4)


def test_every_attack_of_torchattacks_runs() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    classes = {name for name, value in vars(torchattacks).items() if isinstance(value, type)}
    small = replace(BATCH, images=BATCH.images[:4], labels=BATCH.labels[:4], keys=BATCH.keys[:4])
    for name in sorted(classes - SLOW - {"LGV", "MultiAttack"}):
        attack = load_attack(f"torchattacks:{name}")
        threat = BATCH.threat if BATCH.threat.norm in attack.norms else Threat("L2", Fraction(1, 2))
        verdict = attack_samples(MODEL, replace(small, threat=threat), attack, batch_size=4)
        assert set(verdict.broken_by) <= {"", f"torchattacks:{name}"}, name
