"""Test the self-tests: a working installation passes, and a model with masked gradients fails."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from robustbench_vlm.analysis.doctor import doctor, self_tests
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat


def test_a_working_installation_passes_all_self_tests() -> None:
    checks = doctor()
    assert len(checks) == 4
    assert all(check.passed for check in checks), checks


class Masked(nn.Module):
    """A classifier that is correct on every image and whose logits are step functions without a gradient."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images.flatten(1).mean(dim=1) > 0.5).to(images.dtype)
        return torch.stack([1 - bright, bright], dim=1) + 0 * images.flatten(1).sum(dim=1, keepdim=True)


def test_a_model_with_masked_gradients_fails_the_attack_test() -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    images[3:] += 0.7
    keys = sample_keys(0, "masked", [str(n) for n in range(6)])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    batch = Batch(images, labels, keys, Threat("Linf", Fraction(8, 255)), torch.full_like(labels, 2))
    failed = [check.name for check in self_tests(Masked(), batch, load_attack("apgd-ce")) if not check.passed]
    assert failed and "is about 0 under apgd-ce" in failed[0]


def test_unknown_names_raise_user_error() -> None:
    with pytest.raises(UserError, match="unknown track 'nonesuch'"):
        doctor("nonesuch")
