"""Test every warning with a model or records that raise it, and with some that do not."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.losses import LOSSES, loss_warnings
from robustbench_vlm.attacks.sanity import sanity_warnings
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.engine.cell import Cell, Samples
from robustbench_vlm.engine.results import accuracies, score
from robustbench_vlm.engine.warnings import WARNINGS, black_box_breaks, cell_warnings, explain, with_comparisons

Cells = Callable[..., Cell]
Results = Callable[..., list[SampleResult]]
IMAGES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """A linear classifier, which raises no warning."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


class Rounded(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 255).round() / 255)


class Cut(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Cliff(Linear):
    def forward(self, images: Tensor) -> Tensor:
        # The derivative of the square root at zero is infinite, and infinity times zero is NaN.
        return super().forward(images) + (images.flatten(1) * 0).sum(dim=1, keepdim=True).sqrt()


class Noisy(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0.1 * torch.randn(len(images), 3)


class Centred(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(dim=0, keepdim=True))


class Softmax(Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(dim=1)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (Linear(), None),
        (Rounded(), "zero-gradient"),
        (Cut(), "zero-gradient"),
        (Cliff(), "non-finite-gradient"),
        (Noisy(), "unstable-output"),
        (Centred(), "batch-dependent"),
        (Softmax(), "probability-logits"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_each_faulty_model_raises_its_warning(model: nn.Module, code: str | None, batch_size: int) -> None:
    keys = sample_keys(0, "probe", [str(n) for n in range(5)])
    labels = torch.tensor([0, 1, 2, 0, 1])
    batch = Batch(IMAGES, labels, keys, Threat("Linf", Fraction(1, 255)), torch.full_like(labels, 3))
    torch.manual_seed(0)
    expected = {code} if code else set()
    # In a batch of one sample, the centred image is zero everywhere, and so is its gradient.
    also = {"zero-gradient"} if isinstance(model, Centred) else set()
    assert all(
        expected <= set(codes) <= expected | also for codes in sanity_warnings(model, batch, batch_size=batch_size)
    )


def codes(cell: Cell, results: list[SampleResult]) -> set[str]:
    return set(cell_warnings(cell, results, accuracies(results)["robust"]))


def test_a_normal_cell_has_no_warnings(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30)
    assert not codes(cell, make_results(cell, ["", "", "first", "clean", "", ""] * 5))


def test_warnings_of_samples_are_counted(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(300)
    results = make_results(cell)
    results[:5] = [replace(result, warnings="zero-gradient,batch-dependent") for result in results[:5]]
    assert codes(cell, results) == {"zero-gradient:5", "batch-dependent:5"}
    results[1:5] = make_results(cell)[1:5]
    assert codes(cell, results) == {"batch-dependent:1"}


def test_unreadable_images_are_counted(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30)
    samples = Samples(**{**cell.samples.__dict__, "unreadable": ("x", "y")})
    assert codes(replace(cell, samples=samples), make_results(cell)) == {"unreadable:2"}


def test_equal_prompts_are_counted(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30, dataset=Dataset("twins", ("crane", "crane", "dog"), "a {}.", "nowhere:source"))
    assert codes(cell, make_results(cell)) == {"same-prompt:1"}


def test_prompts_with_the_same_tokens_are_counted(make_cell: Cells, make_results: Results) -> None:
    names = ("X-ray", "x - ray", "X ray", "Crane", "crane", " CRANE", "Boeing 747-400", "Boeing 747-40")
    for templates in (("a {}.",), ("a {}.", "one {}")):
        cell = make_cell(30, dataset=Dataset("twins", names, templates, "nowhere:source"))
        assert codes(cell, make_results(cell)) == {"same-prompt:3"}


LONG = "a very small and very faint photo of a very old and very large and rather dark and heavy and round"


@pytest.mark.parametrize("template", [f"{LONG} {{}}.", ("a {}.", f"{LONG} {{}}.")])
def test_prompts_are_compared_up_to_the_context_of_the_model(
    template: str | tuple[str, str], make_cell: Cells, make_results: Results
) -> None:
    cell = make_cell(30, dataset=Dataset("birds", ("wren", "owl", "crane"), template, "nowhere:source"))
    assert not codes(cell, make_results(cell))
    # All three classes have the same text in the long template, so nothing distinguishes them without the short one.
    equal = {"same-prompt:2"} if isinstance(template, str) else set()
    assert codes(replace(cell, context_length=20), make_results(cell)) == {"truncated-prompt:3", *equal}


def test_truncated_prompts_are_counted_by_class(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30, dataset=Dataset("birds", ("wren", "owl", LONG), "a {}.", "nowhere:source"))
    assert codes(replace(cell, context_length=20), make_results(cell)) == {"truncated-prompt:1"}


def test_images_in_two_classes_are_counted(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30)
    digests = list(cell.samples.image_digests)
    digests[4] = digests[0]
    digests[9] = digests[3]
    # Samples 0 and 4 have different labels, samples 3 and 9 have the same.
    samples = Samples(**{**cell.samples.__dict__, "image_digests": tuple(digests)})
    assert codes(replace(cell, samples=samples), make_results(cell)) == {"same-image:2"}


@pytest.mark.parametrize(("broken", "raised"), [(0, False), (1, False), (2, True), (9, True)])
def test_samples_broken_only_by_square_raise_a_warning(
    make_cell: Cells, make_results: Results, broken: int, raised: bool
) -> None:
    cell = make_cell(60)
    verdicts = ["square"] * broken + [""] * (60 - broken)
    assert ("black-box-wins" in "".join(codes(cell, make_results(cell, verdicts)))) == raised
    alone = replace(cell, attack=Attack("square", cell.attack.stages[1:], "only square"))
    assert not codes(alone, make_results(alone, verdicts))


@pytest.mark.parametrize(
    ("left", "broken", "raised"), [(17, 1, True), (20, 1, True), (21, 1, False), (200, 1, False), (200, 2, True)]
)
def test_black_box_stages_are_suspicious_if_an_honest_model_would_rarely_have_so_many_breaks(
    make_cell: Cells, make_results: Results, left: int, broken: int, raised: bool
) -> None:
    cell = make_cell(left + 50)
    verdicts = ["square"] * broken + [""] * (left - broken) + ["first", "clean"] * 25
    assert black_box_breaks(cell.attack, verdicts) == (broken, left)
    assert (f"black-box-wins:{broken}" in codes(cell, make_results(cell, verdicts))) == raised
    honest = 1 - sum(math.comb(left, n) * 0.0005**n * 0.9995 ** (left - n) for n in range(broken))
    assert (honest <= 0.01) == raised


def test_gradients_of_zero_are_reported_above_one_percent(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(300)
    results = make_results(cell)
    results[:4] = [replace(result, warnings="no-gradient,zero-gradient-apgd-t") for result in results[:4]]
    assert codes(cell, results) == {"no-gradient:4", "zero-gradient-apgd-t:4"}
    results[3] = make_results(cell)[3]
    assert not codes(cell, results)


def test_a_collapsed_model_raises_a_warning(make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(30)
    results = [replace(result, clean_prediction=0) for result in make_results(cell)]
    assert "collapsed" in codes(cell, results)
    assert "collapsed" not in codes(cell, [replace(result, label=0) for result in results])


@pytest.mark.parametrize(
    ("right", "robust", "raised"),
    [
        (30, 30, set()),
        (30, 0, set()),
        (10, 0, {"near-chance"}),
        (20, 9, {"robust-near-chance"}),
        (20, 11, {"robust-near-chance"}),
        (20, 18, set()),
        (13, 0, {"near-chance"}),
    ],
)
def test_an_accuracy_no_better_than_a_constant_prediction_raises_a_warning(
    make_cell: Cells, make_results: Results, right: int, robust: int, raised: set[str]
) -> None:
    cell = make_cell(30)
    verdicts = [""] * robust + ["first"] * (right - robust) + ["clean"] * (30 - right)
    assert codes(cell, make_results(cell, verdicts)) == raised


def compared(cells: list[Cell], robust: list[int], make_results: Results) -> list[tuple[str, ...]]:
    scores = [
        score(cell, make_results(cell, [""] * count + ["first"] * (len(cell) - count)))
        for cell, count in zip(cells, robust, strict=True)
    ]
    return [each.warnings for each in with_comparisons(cells, scores)]


@pytest.mark.parametrize(("robust", "raised"), [([80, 60], False), ([60, 61], False), ([60, 70], True)])
def test_a_robust_accuracy_that_rises_with_eps_raises_a_warning(
    make_cell: Cells, make_results: Results, robust: list[int], raised: bool
) -> None:
    cells = [make_cell(100, threat=Threat("Linf", Fraction(eps, 255))) for eps in (4, 8)]
    for order in (slice(None), slice(None, None, -1)):
        small, large = compared(cells[order], robust[order], make_results)[order]
        assert (small, large) == ((), ("rises-with-eps",) if raised else ())
    stranger = [cells[0], replace(cells[1], weights="1" * 64)]
    assert compared(stranger, robust, make_results) == [(), ()]


@pytest.mark.parametrize(("robust", "raised"), [([80, 60], False), ([60, 70], True)])
@pytest.mark.parametrize("names", [("pgd-10", "autoattack"), ("pgd-10", "pgd-100"), ("fgsm", "pgd-20")])
def test_a_robust_accuracy_that_rises_with_the_attack_raises_a_warning(
    make_cell: Cells, make_results: Results, names: tuple[str, str], robust: list[int], raised: bool
) -> None:
    stages = make_cell(1).attack.stages[:1]
    cells = [make_cell(100, attack=replace(load_attack(name), stages=stages)) for name in names]
    assert compared(cells, robust, make_results) == [(), ("rises-with-attack",) if raised else ()]


def test_attacks_without_an_order_of_strength_are_not_compared(make_cell: Cells, make_results: Results) -> None:
    assert load_attack("square").strength is None
    stages = make_cell(1).attack.stages[:1]
    cells = [make_cell(100, attack=replace(load_attack(name), stages=stages)) for name in ("cw", "apgd-ce")]
    assert compared(cells, [50, 90], make_results) == [(), ()]


def test_every_warning_has_an_explanation() -> None:
    for loss in LOSSES:
        assert loss_warnings(loss, torch.tensor([2])).keys() <= WARNINGS.keys()
    assert explain("unreadable:3") is WARNINGS["unreadable"]
    assert explain("of-a-plugin:3").code == "of-a-plugin"
