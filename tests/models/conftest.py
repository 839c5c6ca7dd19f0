"""Fixtures: real architectures with random weights, each built once."""

import pytest
import torch
from torch import nn

from robustbench_vlm.models.open_clip import load_architecture

VIT, RESNET = "open_clip:ViT-B-32-quickgelu", "open_clip:RN50-quickgelu"


def _random(architecture: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_architecture(architecture).build().eval()


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """Return a ViT-B/32 in OpenAI's architecture (QuickGELU)."""
    return _random(VIT)


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """Return a ResNet-50 in OpenAI's architecture (QuickGELU)."""
    return _random(RESNET)
