"""Folding batch normalisation away changes no output beyond rounding."""

import torch
from torch import nn

from robustbench_vlm.models.architecture import load_architecture
from robustbench_vlm.models.folding import folded
from robustbench_vlm.models.mini import MINI


def test_a_folded_residual_network_is_the_same_function_without_normalisation() -> None:
    torch.manual_seed(0)
    visual = MINI.build().visual
    visual.train()(torch.rand(64, 3, 32, 32))
    visual.double().eval()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    folded_visual = folded(visual)
    assert not [module for module in folded_visual.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.allclose(folded_visual(images), visual(images), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[key], value) for key, value in visual.state_dict().items())


def test_other_towers_stay_as_they_are() -> None:
    visual = load_architecture("open_clip:ViT-B-32-quickgelu").build().visual
    assert folded(visual) is visual
