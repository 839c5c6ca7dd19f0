"""Fast pixel gradients equal those of torch's convolution for any kernel size, stride and padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_vlm.models.fast_conv import PixelConvolution, with_fast_pixel_gradients
from robustbench_vlm.models.open_clip import load_architecture


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 4),
    kernel=st.integers(1, 7),
    stride=st.integers(2, 4),
    padding=st.integers(0, 3),
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    bias=st.booleans(),
)
def test_outputs_and_gradients_equal_those_of_torch(
    channels: int, kernel: int, stride: int, padding: int, size: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    slow = nn.Conv2d(channels, 5, kernel, stride, padding, bias=bias).double()
    images = torch.rand(2, channels, *size, dtype=torch.float64, requires_grad=True)
    outputs = slow(images)
    wanted, direction = [images, *slow.parameters()], torch.rand_like(outputs)
    expected = torch.autograd.grad(outputs, wanted, direction)
    found = torch.autograd.grad(PixelConvolution(slow)(images), wanted, direction)
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_only_strided_convolutions_over_few_channels_are_replaced() -> None:
    tower = load_architecture("open_clip:ViT-B-32-quickgelu").build().visual
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    with_fast_pixel_gradients(tower)
    assert isinstance(tower.conv1, PixelConvolution)
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 3, 2), nn.Conv2d(4, 4, 3, 2, groups=2))
    assert not [module for module in with_fast_pixel_gradients(other).modules() if isinstance(module, PixelConvolution)]


def test_gradients_work_in_half_precision() -> None:
    torch.manual_seed(0)
    slow, images = nn.Conv2d(3, 5, 4, 4), torch.rand(2, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = PixelConvolution(slow)(images)
    assert outputs.dtype == torch.bfloat16
    wanted = [images, *slow.parameters()]
    found = torch.autograd.grad(outputs.float().sum(), wanted)
    expected = torch.autograd.grad(slow(images).sum(), wanted)
    assert all(torch.allclose(ours, theirs, rtol=1e-2) for ours, theirs in zip(found, expected, strict=True))
