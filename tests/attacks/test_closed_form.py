"""Comparison of attacks on linear classifiers with closed forms of the distances to decision boundaries."""

import pytest
import torch
from made_up import halving_threat, linear_distances, network, samples

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples

CLASSES = (2, 3, 5, 10, 100, 1000)


def found_and_reachable(name: str, norm: str, classes: int, targets: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    model = network("linear", classes)
    threat = halving_threat(model, classes, norm)
    batch = samples(model, classes, threat)
    verdict = attack_samples(model, batch, load_attack(name), batch_size=16)
    return ~verdict.robust, linear_distances(model, batch, targets), float(threat.eps)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_targeted_attacks_break_exactly_the_samples_within_eps(name: str, norm: str, classes: int) -> None:
    broken, distance, eps = found_and_reachable(name, norm, classes, targets=9)
    assert broken[distance < 0.98 * eps].all()
    if classes <= 10:
        assert not broken[distance > eps * (1 + 1e-5)].any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "apgd-ce", "apgd-dlr", "square"])
def test_all_attacks_are_exact_with_two_classes(name: str, norm: str) -> None:
    broken, distance, eps = found_and_reachable(name, norm, 2, targets=1)
    assert not broken[distance > eps * (1 + 1e-5)].any()
    if name != "square" and (name, norm) != ("fgsm", "L2"):
        assert broken[distance < 0.98 * eps].all()


def test_cw_is_exact_with_two_classes() -> None:
    broken, distance, eps = found_and_reachable("cw", "Linf", 2, targets=1)
    assert torch.equal(broken, distance < eps)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "apgd-ce"])
def test_cross_entropy_attacks_work_when_probabilities_round_to_one(name: str, scale: float) -> None:
    model = network("linear", 2)
    threat = halving_threat(model, 2, "Linf")
    batch = samples(model, 2, threat)
    verdict = attack_samples(lambda images: scale * model(images), batch, load_attack(name), batch_size=16)
    distance = linear_distances(model, batch, 1)
    assert verdict.robust[distance > float(threat.eps) * 1.0001].all()
    assert not verdict.robust[distance < float(threat.eps) * 0.98].any()


def test_images_of_robust_samples_transfer_as_in_closed_form() -> None:
    source, target = network("linear", 2), network("linear", 2, seed=1)
    threat = halving_threat(source, 2, "Linf", times=2)
    batch = samples(source, 2, threat)
    verdict = attack_samples(source, batch, load_attack("pgd-20"), batch_size=16)
    held, eps = verdict.robust, float(threat.eps)
    assert 0 < held.sum() < 24
    # The sign of the direction in which the logit of the other class grows.
    towards = 1 - 2 * batch.labels.to(torch.float32)[:, None]
    slopes = {model: towards * (model[1].weight[1] - model[1].weight[0]) for model in (source, target)}
    corners = batch.images + eps * slopes[source].sign().view_as(batch.images)
    assert torch.allclose(verdict.strongest[held], corners[held], atol=1e-6)

    def lead(images: torch.Tensor) -> torch.Tensor:
        return (target(images) @ torch.tensor([-1.0, 1.0])) * towards[:, 0]

    # The logit difference of the target on images that are attacked along the signs of the source.
    expected = lead(batch.images) + eps * (slopes[target] * slopes[source].sign()).sum(dim=1)
    assert torch.allclose(lead(verdict.strongest)[held], expected[held], atol=1e-4)
