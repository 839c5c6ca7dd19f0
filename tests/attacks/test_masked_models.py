"""Masked models fall or have a warning, honest models have no such warning, and surrogates compute the same network."""

from dataclasses import replace

import pytest
import torch
from made_up import with_parameters
from masked_models import HONEST, MASKED, MaskedModel, Wrapped, small_network, top_logit
from torch import Tensor, nn

from robustbench_vlm import attack
from robustbench_vlm.analysis.attack_classifier import AttackResult
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.automatic_surrogate import StraightThrough, automatic_surrogate
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.leaderboard.masking import MASKING

Base = tuple[nn.Module, Tensor, Tensor]
CHANGES_PREDICTIONS = {"averaged", "mirrored", "noise", "random-resize"}
SHORT = {
    "apgd-ce": {"steps": 15},
    "apgd-t": {"steps": 10, "targets": 3},
    "fab-t": {"steps": 5, "targets": 1},
    "square": {"queries": 60},
    "surrogate-apgd-ce": {"steps": 15},
    "surrogate-apgd-t": {"steps": 10, "targets": 3},
}


def short(name: str) -> Attack:
    whole = with_parameters(load_attack(name), SHORT)
    return replace(whole, stages=tuple(stage for stage in whole.stages if stage.name in SHORT))


def attacked(model: nn.Module, base: Base, chosen: str | Attack = "adaptive", **options: object) -> AttackResult:
    _, images, labels = base
    torch.manual_seed(0)
    stages = short(chosen) if isinstance(chosen, str) else chosen
    return attack(model, images, labels, eps="24/255", attack=stages, **options)  # type: ignore[arg-type]


def masking(found: AttackResult) -> set[str]:
    """Return the codes of masked gradients, without their counts."""
    codes = {warning.partition(":")[0] for warning in found.warnings}
    return {code for code in codes if code in MASKING or code.startswith("zero-gradient")}


@pytest.fixture(scope="module")
def base() -> Base:
    return small_network(20)


@pytest.fixture(scope="module")
def robust_of_base(base: Base) -> int:
    return int(attacked(base[0], base).robust.sum())


@pytest.mark.parametrize("model", [*MASKED, *HONEST], ids=lambda model: model.name)
def test_the_clean_accuracy_is_that_of_the_base_network(model: MaskedModel, base: Base) -> None:
    network, images, labels = base
    with torch.no_grad():
        right = network(images).argmax(dim=1) == labels
        found = model.wrap(network)(images).argmax(dim=1) == labels
    most = 4 if model.name in CHANGES_PREDICTIONS else 1
    assert int(right.sum()) >= 17 and int((right != found).sum()) <= most


@pytest.mark.parametrize("model", MASKED, ids=lambda model: model.name)
def test_a_masked_model_falls_to_its_base_network_or_has_a_warning(
    model: MaskedModel, base: Base, robust_of_base: int
) -> None:
    if model.expected == "refused":
        with pytest.raises(UserError, match="non-finite logits"):
            attacked(model.wrap(base[0]), base)
        return
    found = attacked(model.wrap(base[0]), base)
    falls = int(found.robust.sum()) <= robust_of_base + 0.02 * len(base[1])
    assert 0 < robust_of_base < len(base[1])
    assert falls if model.expected == "falls" else masking(found), (found.broken_by, found.warnings)


@pytest.mark.parametrize("model", HONEST, ids=lambda model: model.name)
def test_an_honest_model_has_no_warning(model: MaskedModel, base: Base) -> None:
    found = attacked(model.wrap(base[0]), base)
    assert not found.warnings and not any("surrogate" in stage for stage in found.broken_by)


@pytest.mark.parametrize("name", ["pgd-20", "cw", "apgd-ce", "fab-t", "pma", "malt", "min-eps", "apgd-features"])
def test_each_gradient_stage_counts_the_gradients_that_its_loss_had(name: str, base: Base) -> None:
    # The clean images of this model have a gradient, and all other images have none.
    (model,) = (model for model in MASKED if model.name == "repairing")
    settings = {"steps": 12, "targets": 1, "candidates": 2, "rounds": 2, "fab_steps": 3, "fab_targets": 1}
    (stage,) = load_attack(name).stages
    changes = {key: value for key, value in settings.items() if key in stage.parameters}
    chosen = replace(load_attack(name), stages=(replace(stage, parameters={**stage.parameters, **changes}),))
    found, honest = (attacked(each, base, chosen) for each in (model.wrap(base[0]), base[0]))
    left = int(found.robust.sum())
    assert left > int(honest.robust.sum()) and not masking(honest)
    assert f"no-gradient:{left}" in found.warnings and "zero-gradient" not in masking(found)


@pytest.mark.parametrize("name", ["thermometer", "codebook"])
def test_a_given_surrogate_breaks_a_model_without_a_gradient(name: str, base: Base, robust_of_base: int) -> None:
    (model,) = (model for model in MASKED if model.name == name)
    found = attacked(model.wrap(base[0]), base, surrogate=base[0])
    assert int(found.robust.sum()) <= robust_of_base + 2 and "no-gradient" in masking(found)
    assert any("of each stage that failed were exactly zero" in warning.meaning for warning in found.explain())


def test_a_gradient_of_zero_is_reported_for_the_loss_that_has_it(base: Base) -> None:
    # The margin to the runner-up has a gradient in the largest logit, but targeted DLR is constant.
    found = attacked(Wrapped(base[0], after=lambda logits: (logits + 50) * top_logit(logits)), base, "autoattack")
    counts = dict(warning.split(":") for warning in found.warnings)
    left = sum(stage in ("", "fab-t", "square") for stage in found.broken_by)
    assert int(counts["zero-gradient-apgd-t"]) == left and not {"no-gradient", "zero-gradient"} & set(counts)
    assert 0 < int(counts["zero-gradient-fab-t"]) <= left
    (text,) = (each for each in found.explain() if each.code == "zero-gradient-apgd-t")
    assert "another part of the attack" in text.meaning


def test_a_certified_network_that_is_constant_near_its_images_has_a_warning_that_says_so(base: Base) -> None:
    _, images, labels = base

    class Certified(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            # The distance to the nearest image of a class changes by at most eps, so the radius is exact.
            far = (pixels[:, None] - images).abs().amax(dim=(2, 3, 4))
            nearest = [far[:, labels == label].amin(dim=1) for label in range(10)]
            return -(torch.stack(nearest, dim=1) - 0.1).clamp(0, 0.05)

    found = attacked(Certified(), base, "autoattack")
    assert int(found.robust.sum()) > 15 and masking(found) == {"zero-gradient", "no-gradient"}
    assert any("may also be constant around" in warning.meaning for warning in found.explain())


def test_a_surrogate_changes_gradients_and_the_last_operations_only(base: Base) -> None:
    network, images, _ = base
    hidden = Wrapped(network, after=lambda logits: logits.detach().sign() * top_logit(logits))
    classifier = as_classifier(hidden)
    surrogate = automatic_surrogate(classifier, classifier, images)
    assert surrogate is not None
    leaf = images.clone().requires_grad_()
    found = surrogate(leaf)
    (gradient,) = torch.autograd.grad(found.square().sum(), leaf)
    again = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(again).square().sum(), again)
    assert torch.equal(found, network(images)) and torch.allclose(gradient, expected)
    assert automatic_surrogate(as_classifier(network), as_classifier(network), images) is None


def test_rounding_passes_the_gradient_unchanged() -> None:
    values = torch.linspace(-2, 2, 9, requires_grad=True)
    for operation in (torch.round, torch.floor, torch.Tensor.ceil, torch.trunc, torch.sign, torch.Tensor.detach):
        with StraightThrough() as mode, torch.no_grad():
            found = operation(values)
        assert torch.equal(found, operation(values)) and mode.changed
        (gradient,) = torch.autograd.grad((3 * found).sum(), values)
        assert torch.equal(gradient, torch.full_like(values, 3))


def test_a_surrogate_for_an_attack_without_a_stage_on_it_is_refused(base: Base) -> None:
    with pytest.raises(
        UserError, match=r"the attack 'autoattack' has no stage on a surrogate: use the attack adaptive"
    ):
        attacked(base[0], base, "autoattack", surrogate=base[0])
    with pytest.raises(UserError, match="got int: give a torch module or a function"):
        attacked(base[0], base, surrogate=5)
