"""Test that the worst case of the cost estimate equals the real cost of a robust sample."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.sanity import SANITY_BACKWARD, SANITY_FORWARD
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cost import attack_passes
from robustbench_vlm.engine.resources import Resources


def unbreakable(images: Tensor) -> Tensor:
    """Return logits of four classes. The first class always wins by a large margin."""
    flat = images.flatten(1)
    return torch.stack([5 + flat.mean(dim=1), flat[:, 0], flat[:, 1], flat[:, 2]], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd-10", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack"])
def test_the_estimate_equals_the_passes_of_a_robust_sample(name: str) -> None:
    attack = load_attack(name)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    keys = sample_keys(0, "estimate", ["a", "b"])
    labels = torch.zeros(2, dtype=torch.int64)
    batch = Batch(images, labels, keys, Threat("Linf", Fraction(8, 255)), torch.full_like(labels, 4))
    verdict = attack_samples(unbreakable, batch, attack, batch_size=2)
    assert verdict.broken_by == ("", "")
    forward, backward = attack_passes(attack, 4, as_classifier(unbreakable))
    spent = int(verdict.forward[0]) + SANITY_FORWARD, int(verdict.backward[0]) + SANITY_BACKWARD
    assert spent[1] == pytest.approx(backward, rel=0.02, abs=3)
    assert spent[0] == pytest.approx(forward, rel=0.02, abs=3)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"batch_size": -1}, {"shard_size": 0}, {"device": "tpu"}])
def test_invalid_resources_raise_user_error(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        Resources(**wrong)  # type: ignore[arg-type]
