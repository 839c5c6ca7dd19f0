"""On a linear classifier inside the pixel range the distance to each other class has a closed form."""

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
def test_targeted_attacks_find_exactly_what_lies_within_eps(name: str, norm: str, classes: int) -> None:
    broken, distance, eps = found_and_reachable(name, norm, classes, targets=9)
    assert broken[distance < 0.98 * eps].all()
    if classes <= 10:
        assert not broken[distance > eps * (1 + 1e-5)].any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "apgd-ce", "apgd-dlr", "square"])
def test_two_classes_leave_no_choice_of_direction(name: str, norm: str) -> None:
    broken, distance, eps = found_and_reachable(name, norm, 2, targets=1)
    assert not broken[distance > eps * (1 + 1e-5)].any()
    if name != "square" and (name, norm) != ("fgsm", "L2"):
        assert broken[distance < 0.98 * eps].all()


def test_cw_finds_exactly_what_lies_within_eps_of_two_classes() -> None:
    broken, distance, eps = found_and_reachable("cw", "Linf", 2, targets=1)
    assert torch.equal(broken, distance < eps)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "apgd-ce"])
def test_cross_entropy_does_not_vanish_where_float32_saturates(name: str, scale: float) -> None:
    model = network("linear", 2)
    threat = halving_threat(model, 2, "Linf")
    batch = samples(model, 2, threat)
    verdict = attack_samples(lambda images: scale * model(images), batch, load_attack(name), batch_size=16)
    distance = linear_distances(model, batch, 1)
    assert verdict.robust[distance > float(threat.eps) * 1.0001].all()
    assert not verdict.robust[distance < float(threat.eps) * 0.98].any()


def test_the_images_of_held_samples_transfer_as_the_closed_form_says() -> None:
    source, target = network("linear", 2), network("linear", 2, seed=1)
    threat = halving_threat(source, 2, "Linf", times=2)
    batch = samples(source, 2, threat)
    verdict = attack_samples(source, batch, load_attack("pgd-20"), batch_size=16)
    held, eps = verdict.robust, float(threat.eps)
    assert 0 < held.sum() < 24
    # From the label to the other class, of two.
    towards = 1 - 2 * batch.labels.to(torch.float32)[:, None]
    slopes = {model: towards * (model[1].weight[1] - model[1].weight[0]) for model in (source, target)}
    corners = batch.images + eps * slopes[source].sign().view_as(batch.images)
    assert torch.allclose(verdict.strongest[held], corners[held], atol=1e-6)

    def lead(images: torch.Tensor) -> torch.Tensor:
        return (target(images) @ torch.tensor([-1.0, 1.0])) * towards[:, 0]

    # How far the other class of the target leads on the source's images, from its slope and the source's signs alone.
    expected = lead(batch.images) + eps * (slopes[target] * slopes[source].sign()).sum(dim=1)
    assert torch.allclose(lead(verdict.strongest)[held], expected[held], atol=1e-4)
