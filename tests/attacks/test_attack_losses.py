"""The losses against their definitions, at ties, for few classes and at every scale of the logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import SHORT, halving_threat, network, samples, with_parameters
from torch.nn import functional

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.losses import LOSSES, cross_entropy, dlr, loss_for, ranked_targets, targeted_dlr
from robustbench_vlm.attacks.worst_case import attack_samples

SCALE_FREE = ("cw", "apgd-dlr", "apgd-t", "fab-t", "square")


def logits_and_labels(seed: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(9, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (9,), generator=generator)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), classes=st.sampled_from([2, 3, 10, 100]))
def test_log_odds_are_cross_entropy_before_the_softplus(seed: int, classes: int) -> None:
    logits, labels = logits_and_labels(seed, classes)
    logits.requires_grad_()
    ours = cross_entropy(logits, labels, labels)
    torch_value = functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(functional.softplus(ours), torch_value)
    gradient, torch_gradient = (torch.autograd.grad(value.sum(), logits)[0] for value in (ours, torch_value))
    assert torch.allclose(functional.normalize(gradient), functional.normalize(torch_gradient))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), classes=st.sampled_from([4, 10, 100]))
def test_dlr_as_the_paper_writes_it(seed: int, classes: int) -> None:
    logits, labels = logits_and_labels(seed, classes)
    targets = ranked_targets(logits, labels, 2)[:, 1]
    for row, label, target, untargeted, targeted in zip(
        logits, labels, targets, dlr(logits, labels, targets), targeted_dlr(logits, labels, targets), strict=True
    ):
        first, _, third, fourth = sorted(row.tolist(), reverse=True)[:4]
        other = max(value for n, value in enumerate(row.tolist()) if n != label)
        assert untargeted == pytest.approx(-(row[label].item() - other) / (first - third), rel=1e-6)
        spread = first - (third + fourth) / 2
        assert targeted == pytest.approx(-(row[label] - row[target]).item() / spread, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 4, 1000])
def test_twin_classes_give_finite_losses_and_gradients(name: str, classes: int) -> None:
    loss, notes = loss_for(name, classes)
    logits = torch.zeros(3, classes, requires_grad=True)
    labels, targets = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    values = loss(logits, labels, targets)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert torch.isfinite(values).all() and torch.isfinite(gradient).all()
    assert bool(notes) == (classes < LOSSES[name].classes)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_targets_are_the_likeliest_other_classes(classes: int) -> None:
    logits, labels = logits_and_labels(0, classes)
    targets = ranked_targets(logits, labels, 9)
    assert targets.shape == (9, min(9, classes - 1))
    assert not (targets == labels[:, None]).any()
    values = logits.gather(1, targets)
    assert (values[:, :-1] >= values[:, 1:]).all()
    rest = logits.scatter(1, targets, -torch.inf).scatter(1, labels[:, None], -torch.inf)
    assert (rest.amax(dim=1) <= values[:, -1]).all()


@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_scale_of_the_logits_changes_no_verdict(name: str, classes: int) -> None:
    model = network("mlp", classes).double()
    batch = samples(model, classes, halving_threat(model, classes, "Linf", times=2.5 if name == "square" else 1))
    attack = with_parameters(load_attack(name), {**SHORT, "cw": {"steps": 12}, "apgd-dlr": {"steps": 12}})
    verdicts = {
        attack_samples(lambda images, scale=scale: scale * model(images), batch, attack, slots=24).broken_by
        for scale in (1.0, 10.0, 100.0, 1000.0)
    }
    assert len(verdicts) == 1 and 0 < verdicts.pop().count("") < 24


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_attacks_work_where_two_classes_are_twins(name: str) -> None:
    model = network("mlp", 6)
    threat = halving_threat(model, 6, "Linf", times=4 if name == "square" else 1)
    twin = int(samples(model, 6, threat).labels.min())
    last = model[-1]
    with torch.no_grad():
        last.weight[5], last.bias[5] = last.weight[twin], last.bias[twin]
    batch = samples(model, 6, threat)
    assert twin < 5 and (batch.labels == twin).any()
    verdict = attack_samples(model, batch, with_parameters(load_attack(name), SHORT), slots=24)
    assert torch.isfinite(verdict.adversarial).all()
    assert "" in verdict.broken_by and name in verdict.broken_by
