"""Tests of `attack_samples`: projected images, verdicts, counted passes and monotonic robust accuracy."""

import sys
from dataclasses import replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
import torch
from made_up import SHORT, halving_threat, network, samples, threat_of, with_parameters

from robustbench_vlm.attacks import load_attack, losses
from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.threat import Threat

MODEL = network("mlp", 5)
BATCH = samples(MODEL, 5, halving_threat(MODEL, 5, "Linf"))
AUTOATTACK = with_parameters(load_attack("autoattack"), SHORT)


def lost(verdict: Verdicts) -> set[int]:
    return {n for n, stage in enumerate(verdict.broken_by) if stage}


@pytest.fixture
def dishonest(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes an attack from stages: functions from a batch to adversarial images."""
    module = ModuleType("dishonest")
    monkeypatch.setitem(sys.modules, "dishonest", module)

    def attack(**stages: Any) -> Attack:
        for name, adversarial in stages.items():

            def run(
                classifier: Classifier, batch: Batch, *, batch_size: int, adversarial: Any = adversarial
            ) -> Outcome:
                ones = torch.ones_like(batch.labels)
                return Outcome(adversarial(batch), 3 * ones, 2 * ones, {"some-code": ones.bool()})

            setattr(module, name, run)
        return Attack("dishonest", tuple(Stage(name, name, f"dishonest:{name}") for name in stages), "")

    return attack


@pytest.mark.parametrize("far", [lambda batch: 1 - batch.images, lambda batch: batch.images * torch.nan])
def test_images_outside_the_threat_are_projected_before_the_verdict(dishonest: Any, far: Any) -> None:
    batch = replace(BATCH, threat=Threat("Linf", Fraction(1, 10**6)))
    verdict = attack_samples(MODEL, batch, dishonest(first=far), batch_size=7)
    assert verdict.robust.all()
    assert torch.equal(verdict.adversarial, batch.images)


def test_a_sample_that_is_robust_after_projection_goes_to_the_next_stage(dishonest: Any) -> None:
    seen = []

    def honest(batch: Batch) -> torch.Tensor:
        seen.append(len(batch.labels))
        return batch.images

    verdict = attack_samples(
        MODEL, BATCH, dishonest(first=lambda batch: batch.images * torch.inf, second=honest), batch_size=7
    )
    assert seen == [24] and verdict.robust.all()
    assert set(verdict.forward.tolist()) == {1 + 2 * (3 + 1)} and set(verdict.backward.tolist()) == {4}
    assert set(verdict.warnings) == {("some-code",)}


def test_an_exception_of_a_stage_is_not_caught(dishonest: Any) -> None:
    def fail(batch: Batch) -> torch.Tensor:
        raise RuntimeError("broken stage")

    with pytest.raises(RuntimeError, match="broken stage"):
        attack_samples(MODEL, BATCH, dishonest(first=fail), batch_size=7)


def test_verdicts_name_the_breaking_stage_and_count_passes() -> None:
    wrong = BATCH.labels.clone()
    wrong[::5] = (wrong[::5] + 1) % 5
    batch = replace(BATCH, labels=wrong)
    verdict = attack_samples(MODEL, batch, AUTOATTACK, batch_size=7)
    assert [stage == "clean" for stage in verdict.broken_by] == [n % 5 == 0 for n in range(24)]
    assert {"clean", "apgd-ce", ""} <= set(verdict.broken_by)
    with torch.no_grad():
        assert torch.equal(verdict.adversarial_prediction, MODEL(verdict.adversarial).argmax(dim=1))
        assert torch.equal(verdict.clean_prediction, MODEL(batch.images).argmax(dim=1))
    broken = verdict.adversarial_prediction != batch.labels
    assert torch.equal(broken, ~verdict.robust)
    assert torch.equal(verdict.margin < 0, verdict.clean_prediction != batch.labels)
    assert (verdict.distance <= float(batch.threat.eps) * (1 + 1e-5)).all()
    assert torch.equal(verdict.distance == 0, verdict.robust | (verdict.clean_prediction != batch.labels))
    assert set(verdict.forward[::5].tolist()) == {1} and (verdict.forward[verdict.robust] > 50).all()
    # One clean pass, and for each of APGD-CE, APGD-T, FAB-T and Square its own passes and one of the image it found.
    costs = 1 + (13 + 1) + (1 + 3 * 13 + 1) + (1 + 2 * 9 + 1) + (61 + 1)
    assert set(verdict.forward[verdict.robust].tolist()) == {costs}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_eps_zero_gives_the_clean_accuracy(norm: str) -> None:
    labels = (BATCH.labels + (torch.arange(24) % 3 == 0)) % 5
    batch = replace(BATCH, labels=labels, threat=Threat(norm, Fraction(0)))
    verdict = attack_samples(MODEL, batch, AUTOATTACK, batch_size=24)
    assert torch.equal(verdict.robust, verdict.clean_prediction == labels)
    assert torch.equal(verdict.adversarial, batch.images)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd-10", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack"])
def test_robust_accuracy_falls_with_eps(name: str, norm: str) -> None:
    attack = with_parameters(load_attack(name), SHORT)
    eps = float(halving_threat(MODEL, 5, norm).eps)
    counts = [
        len(lost(attack_samples(MODEL, replace(BATCH, threat=threat_of(norm, times * eps)), attack, batch_size=24)))
        for times in (0.1, 0.5, 1, 2, 6)
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_more_steps_break_no_fewer_samples() -> None:
    # All iterates are tested, and the iterates of a short run are the first iterates of a longer one.
    before: set[int] = set()
    for steps in (1, 2, 5, 10, 40):
        now = lost(attack_samples(MODEL, BATCH, load_attack(f"pgd-{steps}"), batch_size=24))
        assert before <= now
        before = now
    assert 0 < len(before) < 24


def test_more_stages_break_no_fewer_samples() -> None:
    before: set[int] = set()
    for count in range(1, 5):
        attack = replace(AUTOATTACK, stages=AUTOATTACK.stages[:count])
        now = lost(attack_samples(MODEL, BATCH, attack, batch_size=24))
        assert before <= now
        before = now


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["apgd-ce", "fab-t", "square"])
def test_non_finite_logits_are_refused(name: str, value: float) -> None:
    def spoilt(images: torch.Tensor) -> torch.Tensor:
        changed = (images - BATCH.images[0]).flatten(1).abs().amax(dim=1, keepdim=True) > 0
        return torch.where(changed, value, MODEL(images))

    one = replace(BATCH, images=BATCH.images[:1], labels=BATCH.labels[:1], keys=BATCH.keys[:1])
    with pytest.raises(UserError, match=r"non-finite logits .* 1 of 1 images"):
        attack_samples(spoilt, one, load_attack(name), batch_size=1)


def test_a_non_finite_gradient_raises_a_warning_code() -> None:
    def rooted(images: torch.Tensor) -> torch.Tensor:
        return MODEL(images) + (images - images.detach()).flatten(1).sum(dim=1, keepdim=True).abs().sqrt()

    verdict = attack_samples(rooted, BATCH, load_attack("pgd-10"), batch_size=24)
    assert all("non-finite-gradient" in notes for notes in verdict.warnings)


def test_an_attack_for_another_norm_is_refused() -> None:
    with pytest.raises(UserError, match="'cw' is for Linf, not for L2"):
        attack_samples(MODEL, replace(BATCH, threat=Threat("L2", Fraction(1))), load_attack("cw"), batch_size=24)


def test_half_precision_logits_are_compared_in_float32() -> None:
    verdict = attack_samples(lambda images: MODEL(images).bfloat16(), BATCH, load_attack("pgd-10"), batch_size=24)
    assert verdict.margin.dtype == torch.float32


def test_the_strongest_image_of_a_robust_sample_is_kept(dishonest: Any) -> None:
    radius = float(BATCH.threat.eps)
    wrong = BATCH.labels.clone()
    wrong[0] = (wrong[0] + 1) % 5

    def against(share: float) -> Any:
        def move(batch: Batch) -> torch.Tensor:
            images = batch.images.clone().requires_grad_()
            MODEL(images).gather(1, batch.labels[:, None]).sum().backward()
            assert images.grad is not None
            return batch.images - share * radius * images.grad.sign()

        return move

    # The second stage is the strongest. The third one steps in the wrong direction.
    attack = dishonest(first=against(0.05), second=against(0.1), third=against(-0.1))
    batch = replace(BATCH, labels=wrong)
    verdict = attack_samples(MODEL, batch, attack, batch_size=7)
    broken = torch.tensor([stage not in ("", "clean") for stage in verdict.broken_by])
    assert verdict.robust.sum() > 5 and verdict.broken_by[0] == "clean"
    assert torch.equal(verdict.strongest[0], batch.images[0])
    assert torch.equal(verdict.strongest[broken], verdict.adversarial[broken])
    assert torch.equal(verdict.adversarial[verdict.robust], batch.images[verdict.robust])
    second = against(0.1)(batch).detach()
    # The kept image is that of the second stage if its margin is smaller than that of the clean image.
    with torch.no_grad():
        margins = [-losses.margin(MODEL(images), wrong, wrong) for images in (batch.images, second)]
    nearer = verdict.robust & (margins[1] < margins[0])
    assert nearer.sum() > 5
    assert torch.allclose(verdict.strongest[nearer], second[nearer], atol=1e-7)


def test_a_stage_that_lowers_no_margin_keeps_the_clean_image(dishonest: Any) -> None:
    verdict = attack_samples(MODEL, BATCH, dishonest(first=lambda batch: batch.images * torch.inf), batch_size=7)
    assert verdict.robust.all() and torch.equal(verdict.strongest, BATCH.images)
