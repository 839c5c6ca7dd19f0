"""A strided convolution that computes the gradient with respect to its input pixels fast on a CPU.

If the input has three channels, oneDNN needs up to ten times as long for this gradient as for the convolution.
This module computes the gradient with matrix products and sums the results of overlapping windows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEW = 4
"""The largest number of input channels for which oneDNN's gradient is slow."""


def with_fast_pixel_gradients(network: nn.Module) -> nn.Module:
    """Replace every strided convolution over few channels by a `PixelConvolution`, in place, and return the network.

    Parameters, their names and outputs do not change. Gradients with respect to pixels change only by rounding.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _is_over_pixels(child):
                setattr(module, name, PixelConvolution(child))
    return network


class PixelConvolution(nn.Module):
    """A replacement for the convolution `like`. The parameters of `like` keep their names."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias
        self.stride, self.padding = like.stride[0], like.padding[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution, [B, O, H', W'], of images, [B, C, H, W]."""
        return convolve_pixels(images, self.weight, self.bias, self.stride, int(self.padding))


def convolve_pixels(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return the convolution, [B, O, H', W'], of images, [B, C, H, W], with a square kernel, [O, C, K, K].

    `bias` is [O] or None. All tensors have one floating dtype.
    """
    if images.device.type != "cpu" or not torch.is_grad_enabled():
        return functional.conv2d(images, weight, bias, stride, padding)
    convolved: Tensor = _Convolution.apply(images, weight, bias, stride, padding)
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        # Under autocast, the gradient is in half precision, so it is converted to the dtype of the weight.
        gradient = gradients[0].to(weight.dtype)
        needed = ctx.needs_input_grad[:3]
        images_gradient = (
            _image_gradient(gradient, weight, ctx.stride, ctx.padding, images.shape) if needed[0] else None
        )
        weight_gradient, bias_gradient = None, None
        if needed[1] or needed[2]:
            geometry = ([ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1)
            _, weight_gradient, bias_gradient = torch.ops.aten.convolution_backward(
                gradient, images, weight, [len(weight)], *geometry, [False, needed[1], needed[2]]
            )
        return images_gradient, weight_gradient, bias_gradient, None, None


def _image_gradient(gradient: Tensor, weight: Tensor, stride: int, padding: int, shape: torch.Size) -> Tensor:
    """Convert the gradient with respect to the output into the gradient with respect to the images, [B, C, H, W].

    The kernel and the image are split into blocks of stride x stride pixels. For the output at position (y, x), the
    kernel starts at a multiple of the stride. Each block of the kernel therefore covers exactly one block of the image:
    kernel block (a, b) covers image block (y + a, x + b).
    """
    batch, channels, height, width = shape
    outputs, _, down, across = gradient.shape[1], *gradient.shape[1:]
    blocks = -(-weight.shape[2] // stride)
    missing = blocks * stride - weight.shape[2]
    kernel = functional.pad(weight, (0, missing, 0, missing))
    kernel = kernel.unflatten(3, (blocks, stride)).unflatten(2, (blocks, stride))
    # Reorder the axes from [O, C, a, i, b, j] to [a, b, O, (i, j, C)], so that the last axis is one image
    # block in channels-last order.
    kernel = kernel.permute(2, 4, 0, 3, 5, 1).reshape(blocks, blocks, outputs, -1)
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
    sums = gradient.new_zeros(batch, down + blocks - 1, across + blocks - 1, kernel.shape[-1])
    for a in range(blocks):
        for b in range(blocks):
            part = (rows @ kernel[a, b]).view(batch, down, across, -1)
            sums[:, a : a + down, b : b + across] += part
    image = sums.unflatten(3, (stride, stride, channels)).permute(0, 5, 1, 3, 2, 4)
    image = image.reshape(batch, channels, sums.shape[1] * stride, sums.shape[2] * stride)
    missing_rows, missing_columns = padding + height - image.shape[2], padding + width - image.shape[3]
    if missing_rows > 0 or missing_columns > 0:
        image = functional.pad(image, (0, max(0, missing_columns), 0, max(0, missing_rows)))
    pixels: Tensor = image[:, :, padding : padding + height, padding : padding + width].contiguous()
    return pixels


def _is_over_pixels(convolution: nn.Conv2d) -> bool:
    kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
    plain = convolution.groups == 1 and convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and not isinstance(padding, str)
    return plain and square and padding[0] == padding[1] and convolution.in_channels <= _FEW and stride[0] > 1
