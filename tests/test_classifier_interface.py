"""The `Classifier` interface: every model provides it, and torch modules are wrapped to provide it."""

import pytest
import torch
from torch import nn

from robustbench_vlm.attacks.model import MultiDatasetClassifier, SurrogateClassifier
from robustbench_vlm.core.classifier_interface import Classifier, PlainClassifier, as_classifier
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.engine.model_cache import loaded_model

PROMPTS = ("a photo of a cat.", "a photo of a dog.")
MODULE = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))


def test_a_plain_module_is_wrapped_once() -> None:
    classifier = as_classifier(MODULE)
    assert isinstance(classifier, PlainClassifier) and as_classifier(classifier) is classifier
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classifier.select(torch.tensor([3, 1]))(images[[3, 1]]), MODULE(images[[3, 1]]))
    assert classifier.cost(gradient=False) == (1, 0) and classifier.cost(gradient=True) == (1, 1)


@pytest.mark.parametrize(
    ("reference", "calls", "gradients"), [("clip", (1, 0), (1, 1)), ("ttc+clip", (6, 2), (6, 2 + 1 + 4))]
)
def test_models_with_and_without_a_test_time_defense_implement_the_interface(
    reference: str, calls: tuple[int, int], gradients: tuple[int, int]
) -> None:
    keys = sample_keys(0, "contract", ["a", "b", "c"])
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classifier = loaded_model(reference, "mini", "cpu").classifier(PROMPTS).of_samples(keys)
    assert isinstance(classifier, Classifier) and as_classifier(classifier) is classifier
    assert classifier.cost(gradient=False) == calls and classifier.cost(gradient=True) == gradients
    with torch.no_grad():
        whole, part = classifier(images), classifier.select(torch.tensor([2, 0]))(images[[2, 0]])
    assert whole.dtype == torch.float32 and whole.shape == (3, 2)
    assert torch.allclose(part, whole[[2, 0]], atol=1e-3)


def test_adapters_of_a_classifier_have_the_same_cost() -> None:
    inner = as_classifier(MODULE)
    ranges = MultiDatasetClassifier.of_ranges(inner, torch.tensor([0]), torch.tensor([2]))
    for adapter in (SurrogateClassifier(inner, inner), ranges):
        assert isinstance(adapter, Classifier) and as_classifier(adapter) is adapter
        assert adapter.cost(gradient=True) == inner.cost(gradient=True)
