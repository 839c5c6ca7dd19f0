"""The fast form of the ResNet has the outputs and gradients of open_clip's ResNet."""

import torch
from torch import nn

from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.mini import MINI
from robustbench_vlm.models.open_clip import load_architecture


def _tower() -> nn.Module:
    """Return a ResNet in float64 whose batch normalisations have random statistics and weights."""
    torch.manual_seed(0)
    visual: nn.Module = MINI.build().visual.double()
    with torch.no_grad():
        for module in visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    visual.train()(torch.rand(64, 3, 32, 32, dtype=torch.float64))
    return visual.eval()


def _gradients(images: torch.Tensor, outputs: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    direction = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return list(torch.autograd.grad((outputs * direction).sum(), [images, *weights]))


def test_outputs_and_gradients_equal_those_of_open_clip() -> None:
    visual = _tower()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    # The softmax does not depend on the bias of the keys, so open_clip's gradient for it is only rounding error.
    weights = [weight for name, weight in visual.named_parameters() if name != "attnpool.k_proj.bias"]
    expected, found = visual(images), folded(visual)(images)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    pairs = zip(_gradients(images, found, weights), _gradients(images, expected, weights), strict=True)
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_batch_normalisation_is_folded_and_the_original_is_unchanged() -> None:
    visual = _tower()
    before = {key: value.clone() for key, value in visual.state_dict().items()}
    assert not [module for module in folded(visual).modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(before[key], value) for key, value in visual.state_dict().items())


def test_other_image_encoders_are_returned_unchanged() -> None:
    for name in ("ViT-B-32-quickgelu", "RN50-quickgelu"):
        visual = load_architecture(f"open_clip:{name}").build().visual
        assert folded(visual) is visual


def test_patch_embeddings_are_the_values_of_attention_pooling() -> None:
    visual = _tower()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    embedded, places = folded(visual).dense(images)
    assert torch.equal(embedded, folded(visual)(images))
    maps = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
    block, pool = visual.layer4[0], visual.attnpool
    inner = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(maps))))))
    last = torch.relu(block.bn3(block.conv3(inner)) + block.downsample[2](block.downsample[1](maps)))
    tokens = last.flatten(2).transpose(1, 2) + pool.positional_embedding[0]
    assert torch.allclose(places, pool.c_proj(pool.v_proj(tokens)), rtol=1e-10, atol=1e-10)
