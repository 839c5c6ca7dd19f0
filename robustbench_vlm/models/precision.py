"""Precisions: the number formats in which embeddings of images and logits are computed. Losses are always float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError


@dataclass(frozen=True)
class Precision:
    """The torch settings for one precision of matrix products and convolutions."""

    rounding: float
    """The largest relative error of rounding a number to this precision."""
    tf32: bool = False
    """True if the GPU rounds the factors of float32 products to TF32, which has 10 bits of mantissa."""
    autocast: torch.dtype | None = None
    """The dtype of torch's autocast. None turns autocast off."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """The devices that support this precision."""


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(2**-24),
    "tf32": Precision(2**-11, tf32=True, devices=("cuda",)),
    "bfloat16": Precision(2**-8, autocast=torch.bfloat16),
    "float16": Precision(2**-11, autocast=torch.float16, devices=("cuda",)),
}


class InPrecision(nn.Module):
    """An image encoder whose forward and backward passes run in a fixed precision.

    torch's global settings do not change this precision.
    """

    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, [B, D] in the dtype of the precision, of images, float32 [B, 3, H, W] in [0, 1]."""
        with products(self.name, images.device.type):
            features: Tensor = self.encoder(images)
        return features


def check_precision(name: str, device: str) -> None:
    """Raise UserError if a precision is unknown or the device does not support it."""
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: give one of {', '.join(PRECISIONS)}")
    devices = PRECISIONS[name].devices
    if device not in devices:
        raise UserError(
            f"the protocol computes in {name}, but the device {device} does not support it, and another precision gives"
            f" different results: give --device {devices[0]}, or a --protocol in float32"
        )


@contextmanager
def products(name: str, device: str) -> Iterator[None]:
    """Return a context manager in which `device` computes products in the precision `name`.

    The context manager turns autocast on if the precision needs autocast.
    """
    kind = PRECISIONS[name].autocast
    with arithmetic(name), torch.autocast(device, dtype=kind, enabled=kind is not None):
        yield


@contextmanager
def arithmetic(name: str = "float32") -> Iterator[None]:
    """Return a context manager that sets the precision of float32 products and makes convolutions deterministic.

    `name` is the name of the precision. torch's global settings decide whether float32 products use TF32. The context
    manager changes these settings and restores them at the end.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic
    except RuntimeError as error:
        raise UserError(
            "the setting fp32_precision of torch is used in this process, so torch refuses to read allow_tf32:"
            " remove the setting, because the protocol chooses the precision"
        ) from error
    matmul.allow_tf32 = convolution.allow_tf32 = PRECISIONS[name].tf32
    convolution.benchmark, convolution.deterministic = False, True
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic = before
