"""Masked models fall or have a warning, and honest models have no warning of masked gradients."""

import pytest
import torch
from masked_models import HONEST, MASKED, MaskedModel, small_network
from torch import Tensor, nn

Base = tuple[nn.Module, Tensor, Tensor]
CHANGES_PREDICTIONS = {"averaged", "mirrored", "noise", "random-resize"}


@pytest.fixture(scope="module")
def base() -> Base:
    return small_network(24)


@pytest.mark.parametrize("model", [*MASKED, *HONEST], ids=lambda model: model.name)
def test_the_clean_accuracy_is_that_of_the_base_network(model: MaskedModel, base: Base) -> None:
    network, images, labels = base
    with torch.no_grad():
        right = network(images).argmax(dim=1) == labels
        found = model.wrap(network)(images).argmax(dim=1) == labels
    most = 4 if model.name in CHANGES_PREDICTIONS else 1
    assert int(right.sum()) >= 20 and int((right != found).sum()) <= most
