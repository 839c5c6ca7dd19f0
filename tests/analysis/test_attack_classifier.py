"""Attacks on any classifier from Python: verdicts against a closed form, checks of the arguments, and warnings."""

from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from robustbench_vlm import attack, load_model
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import Progress

SIDE = 6


def linear(classes: int = 2, seed: int = 0) -> nn.Module:
    """Return a linear classifier of images of SIDE pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, classes)).eval()


def images_of(count: int, low: float = 0.3, high: float = 0.7) -> Tensor:
    """Return images that are so far from 0 and 1 that no small perturbation is clipped."""
    return low + (high - low) * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "2/255"), ("L2", "1/10")])
def test_verdicts_on_a_linear_model_are_those_of_the_closed_form(norm: str, eps: str) -> None:
    model, images = linear(), images_of(60)
    weight = model[1].weight.detach()  # type: ignore[index]
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(dim=1)
    labels[:5] = 1 - labels[:5]
    difference = weight[0] - weight[1]
    reach = float(Fraction(eps)) * (difference.abs().sum() if norm == "Linf" else difference.norm())
    margin = (logits[:, 0] - logits[:, 1]).abs()
    sure = (margin - reach).abs() > 1e-3
    found = attack(model, images, labels, eps=eps, norm=norm, attack="autoattack")
    expected = (margin > reach) & (logits.argmax(dim=1) == labels)
    assert torch.equal(found.robust[sure], expected[sure]) and 0 < int(expected.sum()) < 55
    assert found.broken_by[:5] == ("clean",) * 5 and found.clean_accuracy.value == pytest.approx(55 / 60)
    assert found.robust_accuracy.value == pytest.approx(float(found.robust.float().mean()))
    # The images that are returned are the proof of the verdicts.
    changed = found.adversarial - images
    size = changed.abs().flatten(1).amax(dim=1) if norm == "Linf" else changed.flatten(1).norm(dim=1)
    assert float(size.max()) <= float(Fraction(eps)) + 1e-6 and torch.allclose(size, found.distance, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(found.adversarial).argmax(dim=1), found.adversarial_prediction)
    broken = torch.tensor([stage not in ("", "clean") for stage in found.broken_by])
    assert bool((found.adversarial_prediction != labels)[broken].all())


def test_batch_size_changes_no_verdict_and_progress_reaches_the_end() -> None:
    model, images = linear(5), images_of(40)
    labels = model(images).argmax(dim=1)
    seen: list[Progress] = []
    chosen = [attack(model, images[:8], labels[:8], eps="24/255", batch_size=size) for size in (5, 64)]
    attack(model, images, labels, eps="1/255", attack="fgsm", batch_size=4, on_progress=seen.append)
    assert chosen[0].broken_by == chosen[1].broken_by and "" in chosen[0].broken_by
    assert len({*chosen[0].broken_by}) > 1
    assert [report.done for report in seen] == [0, 16, 32, 40] and seen[-1].total == 40


def test_functions_arrays_and_lists_are_accepted() -> None:
    model, images = linear(), images_of(8)
    labels = model(images).argmax(dim=1)
    expected = attack(model, images, labels, eps=Fraction(1, 255), attack="pgd-20")
    found = attack(
        lambda pixels: model(pixels), images.numpy(), labels.tolist(), eps="1/255", attack=load_attack("pgd-20")
    )
    assert found.broken_by == expected.broken_by and found.passes.shape == (8, 2)


def test_random_numbers_follow_the_seed() -> None:
    model, images = linear(), images_of(8)
    labels = model(images).argmax(dim=1)
    first, again, other = (attack(model, images, labels, eps="1/255", attack="pgd-3", seed=n) for n in (0, 0, 1))
    assert torch.equal(first.adversarial, again.adversarial)
    assert not torch.equal(first.adversarial, other.adversarial) or first.broken_by == other.broken_by


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)}, "convert bytes with"),
        ({"images": 255 * images_of(2)}, "if pixels are in 0 to 255, divide them by 255"),
        ({"images": images_of(2) - 1}, "do not normalise them"),
        ({"images": images_of(2) * float("nan")}, "got NaN or infinite values"),
        ({"images": images_of(2)[0]}, r"got the shape \(3, 6, 6\)"),
        ({"images": images_of(2)[:0], "labels": []}, r"got the shape \(0, 3, 6, 6\)"),
        ({"images": "cat.png"}, "got str"),
        ({"labels": [0, 1, 1]}, r"labels must be int \[2\]"),
        ({"labels": [0.0, 1.0]}, "got torch.float32"),
        ({"labels": [0, 2]}, "labels must be in 0 to 1"),
        ({"labels": [-1, 0]}, "got -1 to 0"),
        ({"eps": [0.03]}, "eps must be a number or a text"),
        ({"eps": "8"}, "eps"),
        ({"norm": "l3"}, "norm"),
        ({"attack": "autoatack"}, "autoattack"),
        ({"attack": 5}, "got int"),
        ({"batch_size": 0}, "batch_size"),
        ({"classifier": lambda images: images}, r"must return logits \[B, C\]"),
        ({"batch_size": "2"}, "batch_size must be a positive integer, got '2'"),
        ({"classifier": lambda images: (1, 2)}, "got tuple"),
        ({"classifier": lambda images: linear()(images)[:, :1], "labels": [0, 0]}, "two or more classes"),
        ({"classifier": "agft"}, r"got str: use load_model\('agft'\).classifier\(prompts\)"),
        ({"classifier": load_model("clip")}, r"got Model: use model.classifier\(prompts\)"),
        ({"classifier": 5}, "got int: give a torch module or a function"),
        ({"classifier": lambda images: linear()(images) * float("inf")}, "non-finite logits"),
        ({"classifier": lambda images: linear()(images).to(torch.complex64)}, "must return real logits"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"attack": "adaptive", "surrogate": linear(5)}, r"classifier's 2 classes, got \(2, 5\) for 2 images"),
        ({"attack": "adaptive", "surrogate": lambda images: None}, "got NoneType for 2 images"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_with_the_accepted_forms(
    changed: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"classifier": linear(), "images": images_of(2), "labels": [0, 1], "eps": "1/255"}
    given |= changed
    with pytest.raises(UserError, match=message):
        attack(given.pop("classifier"), given.pop("images"), given.pop("labels"), **given)


def _other_gradient(images: Tensor) -> Tensor:
    return linear(4)(images.detach()) + 0 * torch.ones((), requires_grad=True)


@pytest.mark.parametrize("classifier", [lambda images: linear(4)(images.detach()), _other_gradient])
@pytest.mark.parametrize("name", ["pgd-3", "autoattack"])
def test_without_a_gradient_only_attacks_without_gradients_work(classifier: Any, name: str) -> None:
    images = images_of(4)
    labels = linear(4)(images).argmax(dim=1)
    with pytest.raises(UserError, match=r"no gradient .* remove torch.no_grad.* such as square"):
        attack(classifier, images, labels, eps="1/255", attack=name)
    found = attack(classifier, images, labels, eps="1/2", attack="square")
    assert "square" in found.broken_by and any("zero-gradient" in warning for warning in found.warnings)


def _quantised(images: Tensor) -> Tensor:
    return linear(4)((images * 20).round() / 20)


@pytest.mark.parametrize(
    ("classifier", "code"),
    [
        (nn.Sequential(linear(4), nn.Softmax(dim=1)), "probability-logits"),
        (_quantised, "zero-gradient"),
        (lambda images: linear(4)(images) + 0.1 * torch.rand(len(images), 4), "unstable-output"),
        (lambda images: linear(4)(images - images.mean(dim=0)), "batch-dependent"),
    ],
)
def test_a_classifier_that_hides_its_gradient_raises_a_warning_with_advice(classifier: Any, code: str) -> None:
    images = images_of(24)
    labels = linear(4)(images).argmax(dim=1)
    found = attack(classifier, images, labels, eps="1/255", attack="pgd-3")
    assert code in {warning.partition(":")[0] for warning in found.warnings}
    assert all(warning.meaning and warning.advice for warning in found.explain())


def test_a_random_classifier_is_evaluated_over_fresh_draws() -> None:
    model, images = linear(4), images_of(6)
    labels = model(images).argmax(dim=1)

    def noisy(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixels + 0.3 * torch.randn_like(pixels))

    whole, parts = (
        attack(noisy, images, labels, eps="16/255", attack="pgd-3", draws=10, eot=3, batch_size=n) for n in (8, 1)
    )
    assert not any("unstable-output" in code for code in whole.warnings)
    assert whole.draws.draws == 10 and torch.equal(whole.draws.right, parts.draws.right)
    assert whole.draws.robust.value == float(whole.draws.right.sum()) / 60 < whole.draws.clean.value
    assert torch.equal(whole.robust, (whole.draws.clean_right == 10) & (whole.draws.right == 10))
    with pytest.raises(UserError, match="eot is the number of draws of each gradient and needs draws, got eot=3"):
        attack(noisy, images, labels, eps="4/255", eot=3)


def test_black_box_stages_expose_a_misleading_gradient() -> None:
    images = images_of(10)
    labels = linear(4)(images).argmax(dim=1)
    found = attack(lambda pixels: linear(4)(2 * pixels.detach() - pixels), images, labels, eps="24/255")
    assert any(warning.startswith("black-box-wins") for warning in found.warnings), (found.warnings, found.broken_by)


def test_a_numpy_array_is_not_changed() -> None:
    images = images_of(4).numpy()
    before = images.copy()
    attack(linear(), images, [0, 1, 0, 1], eps="8/255", attack="pgd-3")
    assert numpy.array_equal(images, before)


@pytest.mark.parametrize("name", ["pgd-3", "square"])
def test_a_classifier_may_change_its_input_in_place(name: str) -> None:
    model, images = linear(4), images_of(8)
    labels, before = model(images).argmax(dim=1), images.clone()

    def in_place(pixels: Tensor) -> Tensor:
        return model(pixels.sub_(0.5).mul_(4))

    def plain(pixels: Tensor) -> Tensor:
        return model((pixels - 0.5) * 4)

    found, expected = (attack(each, images, labels, eps="16/255", attack=name) for each in (in_place, plain))
    assert torch.equal(images, before) and found.warnings == expected.warnings
    assert torch.equal(found.adversarial, expected.adversarial) and found.broken_by == expected.broken_by


def test_batch_normalisation_in_train_mode_has_a_warning_with_draws_too() -> None:
    images = images_of(3)
    model = nn.Sequential(nn.BatchNorm2d(3), linear(4))
    for mode, warnings in ((True, {"batch-dependent:3"}), (False, set())):
        found = attack(model.train(mode), images, [0, 1, 2], eps="1/255", attack="pgd-2", draws=2, eot=2)
        assert {code for code in found.warnings if code.startswith("batch")} == warnings
