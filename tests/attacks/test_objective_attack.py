"""Tests of the attack on the objective of a defense, and of the objectives of the bundled defenses."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustbench_vlm import attack, evaluate
from robustbench_vlm.attacks.attack_file import AttackFile, StageEntry, attack_of, write_attack_file
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.models import classifier as clip
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.test_time.base import Passes, TestTimeDefense
from robustbench_vlm.test_time.defended_model import DefendedModel, defended_model

CLIP = load_model("clip", "mini")
TEXTURES = DATASETS.load("textures")
DEFENSES = ("ttc", "et3", "csr", "dbd", "r-tpt@16", "a-tpt@16", "clipure-cos")


@dataclass(frozen=True)
class Detected:
    """A classifier that returns constant logits for the label 0, unless the mean of an image is above 0.55."""

    def __call__(self, images: Tensor) -> Tensor:
        passed = (self.objective(images) > 0.55).float()
        return torch.stack([1 - passed, passed], dim=1) + 0 * images.sum(dim=(1, 2, 3))[:, None]

    def objective(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3))

    def objective_cost(self, *, gradient: bool) -> tuple[int, int]:
        return 0, 0

    def select(self, index: Tensor) -> "Detected":
        return self

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        return 1, int(gradient)


def stage(algorithm: str, gradient: str | None = None, **parameters: int | float | str) -> AttackFile:
    return AttackFile(1, "one", (StageEntry("one", algorithm, {"steps": 5, **parameters}, gradient),))  # type: ignore[arg-type]


def batch(count: int = 4) -> Batch:
    images, labels = torch.full((count, 3, 4, 4), 0.5), torch.zeros(count, dtype=torch.int64)
    return Batch(images, labels, torch.arange(count), Threat("Linf", parse_eps("16/255")), labels + 2)


def test_the_attack_breaks_a_detector_that_hides_the_gradient_of_the_loss() -> None:
    robust = {
        name: int(attack_samples(Detected(), batch(), attack_of(stage(name)), batch_size=3).robust.sum())
        for name in ("apgd", "apgd-objective")
    }
    assert robust == {"apgd": 4, "apgd-objective": 0}


@pytest.mark.parametrize("name", DEFENSES)
def test_the_objective_has_a_gradient_and_its_stated_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Images that pad a batch are not counted in records, so the test turns the padding off.
    monkeypatch.setattr(clip, "_filled", lambda images: images)
    made = defended_model(f"{name}+clip", lambda reference: CLIP, "clip")
    assert made is not None
    source = TEXTURES.open()
    classifier = made.classifier(TEXTURES.prompts).of_samples(sample_keys(0, "textures", source.ids[:2]))
    counted: list[int] = []
    handle = classifier.plain.encoder.register_forward_hook(lambda module, images, out: counted.append(len(images[0])))
    leaf = (source.read(range(2)) / 255).requires_grad_()
    values = classifier.objective(leaf)
    handle.remove()
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert values.shape == (2,) and bool(values.isfinite().all())
    assert bool(gradient.isfinite().all()) and bool(gradient.flatten(1).any(dim=1).all())
    assert sum(counted) == 2 * classifier.objective_cost(gradient=True)[0]
    own, of_logits = classifier.objective_cost(gradient=True), classifier.cost(gradient=True)
    assert own[0] <= of_logits[0] and own[1] <= of_logits[1]


def test_a_run_with_the_file_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    write_attack_file(stage("apgd-objective", "constant"), file := tmp_path / "one.json")
    model, options = "clipure-cos@short+clip", {"datasets": "textures", "samples": 6, "eps": "2/255", "workers": 1}
    found = [
        evaluate(model, str(file), out=tmp_path / str(size), batch_size=size, **options).to_pandas() for size in (2, 64)
    ]
    assert found[0]["robust"].tolist() == found[1]["robust"].tolist()
    assert found[0]["robust"].iloc[0] <= found[0]["clean"].iloc[0]


def test_models_without_a_defense_and_defenses_without_an_objective_are_refused() -> None:
    data = batch()
    with pytest.raises(UserError, match="needs a model with a test-time defense"):
        attack(torch.nn.Flatten(), data.images, data.labels, eps="1/255", attack=attack_of(stage("apgd-objective")))
    plain = TestTimeDefense(
        "plain", lambda context, images: context.image_encoder(images) @ context.text_features.T, lambda s: Passes(1)
    )
    classifier = DefendedModel(plain, CLIP, CLIP).classifier(["a", "b"]).of_samples(data.keys)
    data = replace(data, images=torch.full((4, 3, 32, 32), 0.5))
    data = replace(data, labels=classifier(data.images).argmax(dim=1))
    with pytest.raises(UserError, match="'plain' has no objective"):
        attack_samples(classifier, data, attack_of(stage("apgd-objective")), batch_size=4)
