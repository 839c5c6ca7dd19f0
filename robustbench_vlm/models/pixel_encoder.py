"""Image encoders that take pixels in [0, 1]: resize, normalisation, and a check of the embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError


class PixelEncoder(nn.Module):
    """Map images, float32 [B, 3, H, W] in [0, 1] of any size, to the outputs of an image encoder, float32 [B, D].

    This module resizes and normalises the images. An attack therefore perturbs pixels that are not yet resized or
    normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Callable[[Tensor], Any],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
    ) -> None:
        super().__init__()
        self.encoder, self.image_size, self.interpolation = encoder, image_size, interpolation
        self.dtype = pixel_dtype(encoder)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images, float32 [B, D], not normalised to unit length."""
        output = self.encoder(self.pixels(images).to(self.dtype))
        return checked_embeddings(output, len(images), "image encoder").to(torch.float32)

    def pixels(self, images: Tensor) -> Tensor:
        """Resize and normalise images for the encoder; return float32 [B, 3, image_size, image_size]."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = functional.interpolate(images, size, mode=self.interpolation, align_corners=False)
        return (images - self.mean) / self.std


def pixel_dtype(encoder: Any) -> torch.dtype:
    """Return the dtype of the pixels that an image encoder takes.

    This is the dtype of its first weight with two or more axes, such as the weight of a convolution. For a function or
    a module without such a weight, it is float32.
    """
    if not isinstance(encoder, nn.Module):
        return torch.float32
    kinds = (nn.Conv2d, nn.Linear)
    weights = [module.weight for module in encoder.modules() if isinstance(module, kinds)] or encoder.parameters()
    return next((each.dtype for each in weights if each.is_floating_point() and each.dim() > 1), torch.float32)


def checked_embeddings(output: Any, count: int, what: str) -> Tensor:
    """Return an encoder's output, float [count, D]; raise UserError if it has another type or shape."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != count or not output.is_floating_point():
        got = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"the {what} must return embeddings, float [{count}, D] for {count} inputs, got {got}: wrap it in a"
            " function that returns one vector per input"
        )
    return output
