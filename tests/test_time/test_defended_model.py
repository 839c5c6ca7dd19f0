"""Tests of models with a test-time defense: gradient modes, random numbers, costs and refused attacks."""

import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch, GradientMode
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.model import SurrogateClassifier
from robustbench_vlm.attacks.pgd import pgd
from robustbench_vlm.attacks.sanity import sanity_cost, sanity_warnings
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.engine.cost import attack_passes
from robustbench_vlm.models import classifier as clip
from robustbench_vlm.models.card import ModelCard
from robustbench_vlm.models.classifier import Model, load_model
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.test_time import TEST_TIME_DEFENSES
from robustbench_vlm.test_time.base import DefenseContext, Passes, TestTimeDefense
from robustbench_vlm.test_time.defended_model import DefendedClassifier, DefendedModel, defended_model

CLIP = load_model("clip", "mini")
TEXTURES = DATASETS.load("textures")
COUNT = 6


def batch_of(eps: Fraction = Fraction(10, 255), dtype: torch.dtype = torch.float32) -> Batch:
    source = TEXTURES.open()
    images, labels = source.read(range(COUNT)).to(dtype) / 255, torch.tensor(source.labels[:COUNT])
    keys = sample_keys(0, "textures", source.ids[:COUNT])
    return Batch(images, labels, keys, Threat("Linf", eps), torch.full_like(labels, len(TEXTURES.classes)))


def logits_of_model(made: DefendedModel, batch: Batch) -> DefendedClassifier:
    classifier = copy.deepcopy(made.classifier(TEXTURES.prompts)).to(batch.images.dtype)
    return classifier.of_samples(batch.keys)


def on_clip(name: str) -> DefendedModel:
    found = defended_model(f"{name}+clip", lambda reference: CLIP, "clip")
    assert found is not None
    return found


def attacked(made: DefendedModel, batch: Batch, name: str = "pgd-2", batch_size: int = 64) -> Verdicts:
    attack = made.adapt_attack(load_attack(name))
    return attack_samples(logits_of_model(made, batch), batch, attack, batch_size=batch_size)


def rounded(context: DefenseContext, images: Tensor) -> Tensor:
    """Return the logits of images rounded to 16 levels, whose gradient is zero everywhere."""
    features = torch.nn.functional.normalize(context.image_encoder((15 * images).round() / 15), dim=-1)
    return context.scale * features @ context.text_features.T


MASKED = DefendedModel(TestTimeDefense("rounded", rounded, lambda settings: Passes(1)), CLIP, CLIP)


def test_another_draw_has_other_logits_that_depend_only_on_the_sample() -> None:
    batch = batch_of()
    classifier = logits_of_model(on_clip("ttc"), batch)
    first, second = classifier.redrawn("fresh", 0), classifier.redrawn("fresh", 1)
    logits = first(batch.images)
    assert not torch.equal(logits, second(batch.images)) and not torch.equal(logits, classifier(batch.images))
    index, numbers = torch.tensor([4, 1]), torch.tensor([1, 0])
    mixed = classifier.select(index).redrawn("fresh", numbers)(batch.images[index])
    torch.testing.assert_close(mixed, torch.stack([second(batch.images)[4], logits[1]]))


def test_the_transfer_attack_breaks_a_model_with_masked_gradients() -> None:
    batch = batch_of()
    logits, whole = logits_of_model(MASKED, batch), MASKED.adapt_attack(load_attack("pgd-10"))
    adaptive = replace(
        whole, stages=tuple(stage for stage in whole.stages if stage.gradient_mode.gradient != "transfer")
    )
    alone = attack_samples(logits, batch, adaptive, batch_size=64)
    both = attack_samples(logits, batch, whole, batch_size=64)
    assert alone.robust.sum() >= COUNT - 2
    assert both.robust.sum() == 0
    assert {stage for stage in both.broken_by if stage not in ("", "clean")} == {"transfer:pgd-10"}
    assert all("zero-gradient" in codes for codes in sanity_warnings(logits, batch, batch_size=64))


def test_every_stage_runs_as_transfer_attack_and_in_every_gradient_mode() -> None:
    names = [stage.name for stage in on_clip("ttc").adapt_attack(load_attack("autoattack")).stages]
    white = ["apgd-ce", "apgd-t", "fab-t"]
    adaptive = [f"{view}:{name}" for name in white for view in ("loop", "constant")]
    assert names == [f"transfer:{name}" for name in [*white, "square"]] + adaptive + ["square"]


@pytest.mark.parametrize("name", ["ttc", "clipure-cos", "clipure-cos@short"])
def test_batch_size_and_order_change_no_verdict_and_no_cost(name: str) -> None:
    made, batch = on_clip(name), batch_of(Fraction(1, 255), torch.float64)
    whole = attacked(made, batch)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    split, permuted = attacked(made, batch, batch_size=2), attacked(made, batch.at(order))
    assert whole.broken_by == split.broken_by == tuple(permuted.broken_by[n] for n in order.argsort().tolist())
    assert torch.equal(whole.forward, split.forward) and torch.equal(whole.backward, split.backward)
    assert torch.equal(whole.forward[order], permuted.forward)
    assert torch.allclose(whole.margin, split.margin) and torch.allclose(whole.margin[order], permuted.margin)


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        *((name, attack) for name in ("ttc", "clipure-cos@short", "r-tpt@16") for attack in ("pgd-2", "autoattack")),
        *((name, "pgd-2") for name in ("a-tpt@16", "csr", "dbd", "et3")),
    ],
)
def test_recorded_forward_passes_are_those_of_the_image_encoder(
    name: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images that pad a batch are not counted in records, so the test turns the padding off.
    monkeypatch.setattr(clip, "_filled", lambda images: images)
    made, batch = on_clip(name), batch_of(Fraction(1, 255)).at(torch.arange(2))
    logits, adapted = logits_of_model(made, batch), _short(made.adapt_attack(load_attack(attack)))
    made_passes = []
    logits.plain.encoder.register_forward_hook(lambda module, images, out: made_passes.append(len(images[0])))
    # With free rows in a batch, Square Attack makes queries that it discards and does not count.
    verdict = attack_samples(logits, batch, adapted, batch_size=2)
    assert "clean" not in verdict.broken_by
    assert sum(made_passes) == int(verdict.forward.sum())
    assert verdict.backward.min() > 0


def _short(attack: Attack) -> Attack:
    stages = attack.stages
    short = {"steps": 1, "targets": 1, "queries": 5}
    changed = [{key: short.get(key, value) for key, value in stage.parameters.items()} for stage in stages]
    shorter = (replace(stage, parameters=each) for stage, each in zip(stages, changed, strict=True))
    return replace(attack, stages=tuple(shorter))


def test_the_cost_estimate_is_right_for_a_robust_sample() -> None:
    made, batch = on_clip("ttc"), batch_of(Fraction(0)).at(torch.arange(1))
    logits, attack = logits_of_model(made, batch), made.adapt_attack(load_attack("pgd-10"))
    verdict = attack_samples(logits, batch, attack, batch_size=64)
    assert verdict.robust.all()
    forward, backward = attack_passes(attack, len(TEXTURES.classes), logits)
    probed = sanity_cost(logits)
    assert int(verdict.forward[0]) + probed[0] == pytest.approx(forward, abs=25)
    assert int(verdict.backward[0]) + probed[1] == pytest.approx(backward, abs=25)


def test_more_draws_change_the_gradient_and_no_logit() -> None:
    batch = batch_of(dtype=torch.float64)
    logits = logits_of_model(on_clip("ttc"), batch)
    outcome = {}
    for draws in (1, 2, 3):
        leaf = batch.images.clone().requires_grad_()
        scores = logits.with_gradient(GradientMode("constant", "constant", draws))(leaf)
        outcome[draws] = scores.detach(), torch.autograd.grad(scores[:, 0].sum(), leaf)[0]
    assert torch.allclose(outcome[1][0], outcome[2][0]) and torch.allclose(outcome[1][0], outcome[3][0])
    assert not torch.allclose(outcome[1][1], outcome[2][1])
    assert logits.with_gradient(GradientMode("loop", "loop", 3)).cost(gradient=True) == (3 * 6, 3 * (2 + 1 + 4))
    assert logits.cost(gradient=False) == (6, 2)


def test_a_transfer_attack_continues_until_the_judge_misclassifies() -> None:
    batch = batch_of()
    plain = CLIP.classifier(TEXTURES.prompts)
    stubborn = torch.nn.functional.one_hot(batch.labels, len(TEXTURES.classes)).float()
    judge = as_classifier(lambda images: stubborn[: len(images)])
    outcome = pgd(SurrogateClassifier(plain, judge), batch, batch_size=64, steps=5)
    assert (plain(outcome.adversarial).argmax(dim=1) != batch.labels).sum() >= COUNT - 1
    # Six iterates. The surrogate and the judge each classify every one of them once.
    assert outcome.forward.tolist() == [12] * COUNT and outcome.backward.tolist() == [6] * COUNT


def test_the_message_about_a_call_without_samples_says_how_to_call() -> None:
    with pytest.raises(UserError, match=r"'ttc' was called without samples.*of_samples\(keys\)"):
        on_clip("ttc").classifier(TEXTURES.prompts)(batch_of().images)


def test_attacks_that_do_not_name_the_sample_of_an_image_are_refused() -> None:
    with pytest.raises(UserError, match="does not say which sample"):
        on_clip("ttc").adapt_attack(load_attack("pyautoattack"))


def test_a_test_time_defense_on_top_of_another_is_refused() -> None:
    with pytest.raises(UserError, match="'r-tpt\\+ttc\\+clip' has two test-time defenses"):
        defended_model("r-tpt+ttc+clip", lambda reference: on_clip("ttc"), "clip")


@pytest.mark.parametrize(
    ("says", "original"),
    [
        ({"base": "clip-vit-l-14"}, "clip-vit-l-14"),
        ({"base": "base.json", "folder": "cards"}, str(Path("cards") / "base.json")),
        ({"pretrained": "openai"}, "MODEL"),
        ({}, "clip"),
    ],
)
def test_the_undefended_model_is_the_base_in_the_card(says: dict[str, str], original: str) -> None:
    model = replace(CLIP, card=ModelCard("MODEL", "mini", **says))  # type: ignore[arg-type]
    loaded: list[str] = []

    def load(reference: str) -> Model:
        loaded.append(reference)
        return model

    assert defended_model("ttc+MODEL", load, "clip") and loaded == ["MODEL", original]
    loaded.clear()
    assert defended_model("clipure-cos+MODEL", load, "clip") and loaded == ["MODEL"]


@pytest.mark.parametrize("name", ["a-tpt@16", "csr", "dbd", "et3", "ttc", "r-tpt@16"])
def test_gradients_flow_through_inner_loops_of_transformers(name: str) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    architecture = Architecture({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, (0.5,) * 3, (0.5,) * 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model("small", "0" * 64, architecture.build().eval().requires_grad_(False), architecture)
    batch = batch_of().at(torch.arange(2))
    logits = logits_of_model(DefendedModel(TEST_TIME_DEFENSES.load(name), model, model), batch)
    leaf = batch.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logits.with_gradient(GradientMode("loop", "loop"))(leaf)[:, 0].sum(), leaf)
    assert torch.isfinite(gradient).all() and gradient.abs().amax(dim=(1, 2, 3)).min() > 0
