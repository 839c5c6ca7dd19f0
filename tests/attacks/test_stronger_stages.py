"""Tests of PMA, MALT, and APGD on rescaled logits and on embeddings: closed forms, invariances, passes and batches."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import halving_threat, linear_distances, network, samples, threat_of, with_parameters
from test_multi_dataset import several_datasets
from test_reference import BENCHMARK, DATA
from torch.nn import functional

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.autoattack import AUTOATTACK
from robustbench_vlm.attacks.autoattack_plus import AUTOATTACK_PLUS, STRONGER_STAGES
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.losses import other_log_probability, probability_margin
from robustbench_vlm.attacks.malt import Malt
from robustbench_vlm.attacks.model import CountedClassifier, SurrogateClassifier
from robustbench_vlm.attacks.probability_margin_attack import Pma
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.threat import Threat

NAMES = ("pma", "malt", "apgd-rescaled", "apgd-features")
SHORT = {
    "pma": {"steps": 12},
    "malt": {"steps": 12, "targets": 2, "candidates": 4},
    "apgd-rescaled": {"steps": 12},
    "apgd-features": {"steps": 12},
    "min-eps": {"steps": 8, "rounds": 4, "fab_steps": 6, "fab_targets": 2},
}


def verdicts(name: str, model: object, batch: Batch, batch_size: int = 24) -> Verdicts:
    return attack_samples(model, batch, with_parameters(load_attack(name), SHORT), batch_size=batch_size)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), classes=st.sampled_from([2, 3, 10, 100]))
def test_the_probability_margin_loss_is_the_logarithm_of_one_plus_the_margin(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(9, classes, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(classes, (9,), generator=generator)
    probability = logits.softmax(dim=1)
    own = probability.gather(1, labels[:, None]).squeeze(1)
    other = probability.scatter(1, labels[:, None], -1).amax(dim=1)
    found = probability_margin(logits, labels, labels)
    assert torch.allclose(found, torch.log1p(other - own))
    assert torch.allclose(other_log_probability(logits, labels, labels), other.log())
    ours, theirs = (torch.autograd.grad(values.sum(), logits, retain_graph=True)[0] for values in (found, other - own))
    assert torch.allclose(functional.normalize(ours), functional.normalize(theirs))


def test_the_probability_margin_loss_has_a_gradient_when_the_probability_rounds_to_one() -> None:
    logits = torch.tensor([[300.0, 0.0, -20.0]], requires_grad=True)
    label = torch.tensor([0])
    probability = logits.softmax(dim=1)
    (plain,) = torch.autograd.grad((probability[:, 1] - probability[:, 0]).sum(), logits)
    (ours,) = torch.autograd.grad(probability_margin(logits, label, label).sum(), logits)
    assert not plain.any() and torch.allclose(ours, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_the_step_size_of_pma_follows_the_released_code() -> None:
    found = Pma(threat=threat_of("Linf", 0.5), steps=20).step_sizes(torch.arange(20))
    released = [2 * 0.5 * 0.5 * (1 + math.cos((i - 10 - 1 if i > 10 else i - 1) / 10 * math.pi)) for i in range(20)]
    assert torch.allclose(found, torch.tensor(released, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pma", "malt"])
def test_pma_and_malt_break_exactly_the_samples_within_eps_of_a_linear_model(
    name: str, norm: str, classes: int
) -> None:
    model = network("linear", classes)
    threat = halving_threat(model, classes, norm)
    batch = samples(model, classes, threat)
    # One target is enough for MALT, because it ranks the boundaries of a linear model by their distance.
    attack = with_parameters(load_attack(name), {"malt": {"targets": 1}})
    broken = ~attack_samples(model, batch, attack, batch_size=24).robust
    distance, eps = linear_distances(model, batch, classes - 1), float(threat.eps)
    assert broken[distance < 0.98 * eps].all() and not broken[distance > eps * (1 + 1e-5)].any()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    classes=st.sampled_from([3, 12]),
    candidates=st.sampled_from([2, 100]),
    seed=st.integers(0, 9),
)
def test_malt_ranks_the_candidates_by_the_distance_of_their_linearised_boundary(
    norm: str, classes: int, candidates: int, seed: int
) -> None:
    model = network("conv", classes, seed).double()
    batch = samples(model, classes, Threat(norm, Fraction(1, 9)), 6)
    found = Malt(threat=batch.threat, candidates=candidates, targets=9).choose_targets(
        CountedClassifier(as_classifier(model)), batch
    )
    images = batch.images.clone().requires_grad_()
    logits = model(images)
    gap = logits.gather(1, batch.labels[:, None]) - logits
    for n, label in enumerate(batch.labels.tolist()):
        ranked = [c for c in logits[n].argsort(descending=True).tolist() if c != label][:candidates]
        slopes = {c: torch.autograd.grad(gap[n, c], images, retain_graph=True)[0][n] for c in ranked}
        power = 1 if norm == "Linf" else 2
        away = {c: float(gap[n, c].detach() / slopes[c].norm(power)) for c in ranked}
        assert found.classes[n, : int(found.count[n])].tolist() == sorted(ranked, key=away.__getitem__)[:9]


@pytest.mark.parametrize("name", ["malt", "apgd-rescaled", "pma"])
def test_a_large_logit_scale_does_not_weaken_the_stages(name: str) -> None:
    model = network("mlp", 5).double()
    batch = samples(model, 5, halving_threat(model, 5, "Linf"))
    counts = [
        verdicts(name, lambda images, scale=scale: scale * model(images), batch).broken_by.count("")
        for scale in (1.0, 1e2, 1e4)
    ]
    assert 0 < max(counts) < 24 and max(counts) - min(counts) <= (4 if name == "pma" else 0)


def test_the_feature_attack_moves_the_feature_of_a_linear_model_as_far_as_possible() -> None:
    model = network("linear", 2).double()
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = 0, 0
    batch = samples(model, 2, threat_of("Linf", 1e-2), 8)
    (stage,) = load_attack("apgd-features").stages
    adversarial = stage.run(as_classifier(model), batch, 8).adversarial
    moved = (model(adversarial) - model(batch.images))[:, 0].abs()
    # The distance of the only feature is largest at the corners that the signs of its weights choose.
    assert torch.allclose(moved, 1e-2 * model[1].weight[0].abs().sum())


class Embedding(torch.nn.Module):
    """A classifier with image embeddings: its logits are cosine similarities with the unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = network("conv", 6)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.encoder(images), dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 100 * self.image_features(images)

    def select(self, index: torch.Tensor) -> "Embedding":
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        return 1, int(gradient)


def test_the_feature_attack_uses_embeddings_and_the_judge_decides() -> None:
    model = Embedding().eval()
    batch = samples(model.encoder, 6, halving_threat(model.encoder, 6, "Linf", times=4))
    found = verdicts("apgd-features", model, batch)
    similarity = (model.image_features(found.strongest) * model.image_features(batch.images)).sum(dim=1)
    assert similarity.max() < 0.95 and found.broken_by.count("apgd-features") > 0
    pair = SurrogateClassifier(model, as_classifier(network("conv", 6)))
    assert verdicts("apgd-features", pair, batch).broken_by == found.broken_by


@pytest.mark.parametrize("name", [*NAMES, "min-eps"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_batches_and_other_datasets_change_no_verdict_and_no_count_of_passes(name: str, norm: str) -> None:
    parts, logits, whole = several_datasets([2, 3, 12], norm)
    together = verdicts(name, logits, whole, batch_size=5)
    for number, (model, batch) in enumerate(parts):
        rows, alone = slice(6 * number, 6 * number + 6), verdicts(name, model, batch)
        assert together.broken_by[rows] == alone.broken_by
        assert torch.equal(together.forward[rows], alone.forward)
        assert torch.equal(together.backward[rows], alone.backward)
        assert torch.allclose(together.adversarial[rows], alone.adversarial, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 12])
@pytest.mark.parametrize("name", NAMES)
def test_a_robust_sample_costs_as_many_passes_as_the_stage_declares(name: str, classes: int) -> None:
    model = network("linear", classes)
    batch = samples(model, classes, Threat("Linf", Fraction(0)), 3)
    found = verdicts(name, model, batch)
    (stage,) = with_parameters(load_attack(name), SHORT).stages
    without, with_gradient = stage.calls(stage.parameters, classes)
    # The clean image and the image that the stage returns are classified too.
    assert (found.forward == without + with_gradient + 2).all() and (found.backward == with_gradient).all()


def test_autoattack_plus_is_autoattack_with_more_stages() -> None:
    assert AUTOATTACK_PLUS.stages == (*AUTOATTACK.stages, *STRONGER_STAGES)
    assert AUTOATTACK_PLUS.strength is not None and AUTOATTACK.strength is not None
    assert AUTOATTACK_PLUS.strength > AUTOATTACK.strength
    names = [stage.name for stage in AUTOATTACK_PLUS.stages]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data are not on this machine")
def test_pma_breaks_as_many_samples_of_a_real_network_as_the_official_autoattack() -> None:
    model, batch, official = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], "8/255")
    robust = attack_samples(model, batch, load_attack("pma"), batch_size=128).robust
    assert torch.equal(robust, official)
