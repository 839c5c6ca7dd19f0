"""Tests of attacks over several draws: closed forms, the official version "rand", seeds and batches."""

import dataclasses
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import pyautoattack
import pytest
import torch
from made_up import SHORT, SIDE, network, samples, threat_of, with_parameters
from torch import Tensor, nn

import robustbench_vlm as rvlm
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch, GradientMode
from robustbench_vlm.attacks.eot import (
    DrawnClassifier,
    DrawVerdicts,
    RandomClassifier,
    attack_over_draws,
    check_draws,
    numbers_of,
    random_classifier,
    votes,
    with_draws,
)
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.losses import cross_entropy
from robustbench_vlm.attacks.model import CountedClassifier, ScaledClassifier, SurrogateClassifier
from robustbench_vlm.attacks.transfer_start import TRANSFER_START_STAGE
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier, PlainClassifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat

PIXELS = 3 * SIDE * SIDE
SIGMA, EPS = 0.25, 0.02


class Noisy(nn.Module):
    """A network with Gaussian noise on its input, drawn from torch's global generator."""

    def __init__(self, inner: nn.Module, sigma: float) -> None:
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + self.sigma * torch.randn_like(images))


@dataclass(frozen=True)
class Keyed:
    """A classifier that adds noise to its input, drawn from the keys of its samples for the whole batch at once."""

    inner: nn.Module
    sigma: float
    keys: Tensor
    slope: float = 0.0
    """The size of a random gradient with mean zero, which does not change the logits."""

    def __call__(self, images: Tensor, /) -> Tensor:
        noise = randomness.normal(self.keys, 0, images.shape[1:])
        pushed = self.slope * (noise * (images - images.detach())).flatten(1).sum(dim=1)
        logits: Tensor = self.inner(images + self.sigma * noise)
        return logits + pushed[:, None] * torch.arange(logits.shape[1])

    def select(self, index: Tensor) -> "Keyed":
        return replace(self, keys=self.keys[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        return 1, int(gradient)

    def redrawn(self, purpose: str, number: Tensor | int) -> "Keyed":
        return replace(self, keys=randomness.redraw(self.keys, purpose, number))

    def with_gradient(self, mode: GradientMode) -> Classifier:
        return SurrogateClassifier(PlainClassifier(self.inner), self) if mode.gradient == "transfer" else self


@dataclass(frozen=True)
class Recorded(Keyed):
    """A classifier that records its calls."""

    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(default_factory=list)
    """The numbers of the images and the keys of each call with a gradient."""
    classified: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    """The keys of each call without a gradient."""

    def __call__(self, images: Tensor, /) -> Tensor:
        keys = tuple(self.keys.tolist())
        if images.requires_grad:
            self.seen.append((tuple(numbers_of(images).tolist()), keys))
        else:
            self.classified.append(keys)
        return super().__call__(images)


def linear_case(count: int = 4) -> tuple[Keyed, Batch, Tensor]:
    """Return a noisy linear model with two classes, samples, and the clean margin divided by the noise, (B,)."""
    model = network("linear", 2)
    batch = samples(model, 2, threat_of("Linf", EPS), count)
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    sign = torch.where(batch.labels == 0, 1.0, -1.0)
    normal, offset = weight[0] - weight[1], float(bias[0] - bias[1])
    # The images are moved to a margin of one to two standard deviations of the noise.
    wanted = torch.linspace(1.0, 2.0, count) * SIGMA * normal.norm()
    margin = sign * (batch.images.flatten(1) @ normal + offset)
    moved = batch.images.flatten(1) + ((wanted - margin) * sign)[:, None] * normal / normal.norm() ** 2
    batch = replace(batch, images=moved.view_as(batch.images).contiguous())
    return Keyed(model, SIGMA, batch.keys), batch, normal


def seeded(model: nn.Module, batch: Batch) -> RandomClassifier:
    return random_classifier(PlainClassifier(model), batch.keys)


def run(
    random: RandomClassifier, batch: Batch, name: str, *, draws: int, eot: int, batch_size: int = 8
) -> DrawVerdicts:
    attack = with_parameters(load_attack(name), {**SHORT, "apgd-dlr": {"steps": 12}})
    return attack_over_draws(random, batch, with_draws(attack, eot), draws=draws, eot=eot, batch_size=batch_size)


def expected(distance: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(distance / math.sqrt(2)))


def test_the_accuracy_over_draws_is_that_of_the_closed_form() -> None:
    model, batch, normal = linear_case()
    draws = 400
    found = run(model, batch, "pgd-10", draws=draws, eot=40)
    scale = SIGMA * float(normal.norm())
    # No perturbation within eps reduces the margin by more than eps times the L1 norm of the weights.
    lowest = torch.linspace(1.0, 2.0, 4) - EPS * float(normal.abs().sum()) / scale
    for counts, distances in ((found.clean_right, torch.linspace(1.0, 2.0, 4)), (found.right, lowest)):
        share = expected(distances)
        error = 4 * (share * (1 - share) / draws).sqrt()
        assert ((counts / draws - share).abs() <= error).all(), (counts / draws, share)
    # A sample is right if at least 99 % of the 400 draws are.
    assert [stage == "clean" for stage in found.verdicts.broken_by] == (found.clean_right < 396).tolist()
    assert torch.equal(found.verdicts.robust, (found.clean_right >= 396) & (found.right >= 396))


def test_the_mean_gradient_is_the_mean_of_the_gradients_of_the_losses() -> None:
    model = Noisy(network("mlp", 4), 0.2)
    batch = samples(model.inner, 4, threat_of("Linf", EPS), 3)
    random = seeded(model, batch)
    mode = with_draws(load_attack("pgd-10"), 5).stages[0].gradient_mode
    seen = DrawnClassifier(random, batch.labels, 4, 5).with_gradient(mode)

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, batch.labels, batch.labels)

    counted = CountedClassifier(seen)
    others = batch.images + 1 / 255
    found = [counted.gradient(images, loss) for images in (batch.images, others)]
    assert counted.forward == counted.backward == 10
    for images, values in zip((batch.images, others), found, strict=True):
        drawn = (random.redrawn(f"gradient {draw}", numbers_of(images)) for draw in range(5))
        parts = [CountedClassifier(each).gradient(images, loss) for each in drawn]
        for value, each in zip(values, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(value, torch.stack(each).mean(dim=0))
    # Other images have other draws, and calls without a gradient have fixed draws.
    assert len({*numbers_of(batch.images).tolist(), *numbers_of(others).tolist()}) == 6
    assert torch.equal(counted.logits(batch.images), counted.logits(batch.images))


def test_rescaled_logits_have_mean_gradients_too() -> None:
    model = Noisy(network("mlp", 4), 0.2)
    batch = samples(model.inner, 4, threat_of("Linf", EPS), 3)
    mode = with_draws(load_attack("pgd-10"), 6).stages[0].gradient_mode
    counted = []
    for factor in (1.0, 3.0):
        random = seeded(model, batch)
        seen = DrawnClassifier(random, batch.labels, 4, 6).with_gradient(mode)
        scaled = ScaledClassifier(seen.surrogate, torch.full((3,), factor))
        counted.append(CountedClassifier(scaled).gradient(batch.images, lambda logits: logits[:, 0])[2])
    torch.testing.assert_close(counted[1], 3 * counted[0])


def test_the_logits_of_votes_are_misclassified_only_if_all_draws_are_wrong() -> None:
    model = Noisy(network("mlp", 5), 0.5)
    batch = samples(model.inner, 5, threat_of("Linf", EPS), 24)
    random = seeded(model, batch)
    for draws in (1, 2, 7):
        logits = DrawnClassifier(random, batch.labels, 5, draws)(batch.images)
        found = votes(random, batch.images, batch.labels, "votes", draws)
        assert torch.equal(logits.argmax(dim=1) == batch.labels, found.right > 0)
        others = logits.scatter(1, batch.labels[:, None], -9.0).amax(dim=1)
        order = (-others).argsort()
        assert (found.right[order].diff() >= 0).all()
        assert (found.rival != batch.labels).all()


@pytest.mark.parametrize(("kind", "count"), [("keyed", 4), ("keyed", 18), ("seeded", 4)])
def test_the_batch_size_and_the_other_samples_change_nothing(kind: str, count: int) -> None:
    model = network("mlp", 4)
    batch = samples(model, 4, threat_of("Linf", 0.04), count)
    name, draws, eot = ("autoattack", 20, 3) if kind == "keyed" else ("apgd-ce", 10, 2)
    # With many samples and free places, the batch has several runs of a sample at once.
    name = "apgd-t" if count > 4 else name

    def found(batch: Batch, batch_size: int = 64) -> DrawVerdicts:
        random = Keyed(model, 0.1, batch.keys) if kind == "keyed" else seeded(Noisy(model, 0.1), batch)
        return run(random, batch, name, draws=draws, eot=eot, batch_size=batch_size)

    whole = found(batch)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = found(batch, count // 2)
    assert torch.equal(before, torch.random.get_rng_state())
    order = torch.tensor([3, 1])
    some = found(batch.at(order))
    assert whole.verdicts.broken_by == again.verdicts.broken_by
    for field in ("right", "clean_right"):
        assert torch.equal(getattr(whole, field), getattr(again, field))
        assert torch.equal(getattr(whole, field)[order], getattr(some, field))
    for field in ("forward", "backward", "strongest"):
        assert torch.equal(getattr(whole.verdicts, field), getattr(again.verdicts, field)), field
        assert torch.equal(getattr(whole.verdicts, field)[order], getattr(some.verdicts, field)), field
    other = found(replace(batch, keys=sample_keys(1, "made-up", [f"other {number}" for number in range(count)])))
    assert not torch.equal(whole.verdicts.strongest, other.verdicts.strongest)


def test_a_model_without_random_numbers_has_the_verdicts_of_the_usual_attack() -> None:
    model = network("mlp", 4)
    batch = samples(model, 4, threat_of("Linf", 0.03), 12)
    found = run(Keyed(model, 0.0, batch.keys), batch, "apgd-ce", draws=2, eot=1)
    assert set(found.right.tolist()) == {0, 2} and found.clean_right.eq(2).all()
    attack = with_parameters(load_attack("apgd-ce"), SHORT)
    usual = attack_samples(model, batch, attack, batch_size=8)
    assert found.verdicts.broken_by == usual.broken_by
    assert torch.equal(found.verdicts.adversarial, usual.adversarial)


def test_more_draws_of_the_gradient_make_the_attack_stronger() -> None:
    inner = network("linear", 2)
    batch = samples(inner, 2, threat_of("Linf", 0.03), 16)
    random = Keyed(inner, 0.0, batch.keys, slope=0.5)
    one, many = (int(run(random, batch, "pgd-10", draws=2, eot=eot).right.sum()) for eot in (1, 24))
    assert many < one - 8, (one, many)


def few_steps(name: str) -> Attack:
    settings = {"steps": 4, "targets": 1, "candidates": 2, "rounds": 2, "fab_steps": 3, "fab_targets": 1, "queries": 9}
    whole = load_attack(name)
    (stage,) = whole.stages
    return with_parameters(whole, {stage.name: {key: settings[key] for key in settings if key in stage.parameters}})


@pytest.mark.parametrize(
    "name", ["pgd-10", "cw", "apgd-t", "fab-t", "pma", "malt", "min-eps", "apgd-rescaled", "apgd-features"]
)
def test_every_gradient_of_every_stage_is_a_mean_over_new_draws(name: str) -> None:
    inner = network("linear", 3)
    batch = samples(inner, 3, threat_of("Linf", 0.002), 2)
    random = Recorded(inner, 0.0, batch.keys)
    attack_over_draws(random, batch, with_draws(few_steps(name), 3), draws=2, eot=3, batch_size=8)
    calls = [random.seen[place : place + 3] for place in range(0, len(random.seen), 3)]
    keys: dict[tuple[int, int], set[int]] = {}
    for call in calls:
        assert len({numbers for numbers, _ in call}) == 1 and len(call) == 3
        for numbers, drawn in call:
            for row, number in enumerate(numbers):
                keys.setdefault((number, row), set()).add(drawn[row])
    # Equal images have equal draws, and all other draws differ.
    assert len(keys) >= 4 and all(len(drawn) == 3 for drawn in keys.values())
    assert len(set().union(*keys.values())) == 3 * len(keys)


def test_each_query_of_square_is_a_mean_over_draws() -> None:
    inner = network("linear", 3)
    batch = samples(inner, 3, threat_of("Linf", 0.002), 1)
    for eot in (1, 4):
        random = Recorded(inner, 0.0, batch.keys)
        found = attack_over_draws(random, batch, with_draws(few_steps("square"), eot), draws=2, eot=eot, batch_size=1)
        # The queries, the votes and the fresh draws of the clean and the strongest image have separate draws.
        assert found.verdicts.robust.all() and not random.seen
        assert len(set(random.classified)) == 2 * eot + 2
        assert len(random.classified) >= 9 * eot


def test_a_surrogate_is_attacked_and_the_draws_decide() -> None:
    inner = network("linear", 2)
    batch = samples(inner, 2, threat_of("Linf", 0.06), 6)

    def hidden(images: Tensor) -> Tensor:
        return (20 * inner(images + 0.01 * torch.randn_like(images))).detach().requires_grad_().round()

    whole = with_parameters(load_attack("adaptive"), SHORT | {"surrogate-apgd-ce": {"steps": 12}})
    chosen = replace(whole, stages=tuple(stage for stage in whole.stages if stage.name == "surrogate-apgd-ce"))
    right = []
    for surrogate in (None, inner):
        found = rvlm.attack(
            hidden, batch.images, batch.labels, eps="0.06", attack=chosen, surrogate=surrogate, draws=4, eot=2
        )
        right.append(int(found.draws.right.sum()))
    assert right[0] >= 22 and right[1] < 12, right
    started = Attack("start", (TRANSFER_START_STAGE,), "transferred start")
    assert with_draws(started, 2).stages[0].gradient_mode == GradientMode("", "loop", 2)


def test_a_transferred_start_is_found_without_the_random_defense() -> None:
    inner = network("linear", 2)
    batch = samples(inner, 2, threat_of("Linf", 0.03), 16)
    random = Keyed(inner, 0.0, batch.keys, slope=1000.0)
    stage = replace(TRANSFER_START_STAGE, parameters={**TRANSFER_START_STAGE.parameters, "steps": 2, "restarts": 2})
    attack = with_draws(Attack("start", (stage,), "transferred start"), 2)
    started = attack_over_draws(random, batch, attack, draws=2, eot=2, batch_size=8)
    plain = run(random, batch, "apgd-ce", draws=2, eot=2)
    assert int(started.right.sum()) < int(plain.right.sum()) - 8


def test_the_attack_is_as_strong_as_the_official_version_rand() -> None:
    model = network("mlp", 5)
    batch = samples(model, 5, Threat("Linf", Fraction(1, 16)), 8)
    adversary = pyautoattack.AutoAttack(Noisy(model, 0.1), eps=float(batch.threat.eps), version="rand", seed=0)
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"] and adversary.apgd.eot_iter == 20
    adversary.apgd.n_iter, adversary.apgd.eot_iter = 12, 4
    with torch.random.fork_rng():
        theirs, _ = adversary.run_standard_evaluation(batch.images, batch.labels)
    random = Keyed(model, 0.1, batch.keys)
    ours = run(random, batch, "autoattack-rand", draws=200, eot=4)
    under_theirs = votes(random, theirs, batch.labels, "fresh", 200).right
    # All numbers are mean accuracies over the same fresh draws.
    shares = [float(right.float().mean()) / 200 for right in (ours.clean_right, under_theirs, ours.right)]
    assert shares[0] > shares[1] + 0.05 and shares[2] <= shares[1] + 0.03, shares


def test_an_attack_of_another_library_is_refused() -> None:
    for name in ("autoattack-rand", "square", "pgd-10", "pma", "malt"):
        check_draws(load_attack(name))
    with pytest.raises(UserError, match="apgd-ce does not say which sample an image belongs to: choose an attack of"):
        check_draws(load_attack("pyautoattack:apgd-ce"))
