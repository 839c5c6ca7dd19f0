"""Precisions: the number formats in which the image encoder and the logits are computed; losses are float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError


@dataclass(frozen=True)
class Precision:
    """How products are rounded."""

    rounding: float
    """The largest relative error of rounding one number."""
    tf32: bool = False
    """Whether products of float32 numbers are rounded to ten bits (TF32)."""
    autocast: torch.dtype | None = None
    """The type that products are cast to, as torch's autocast does it."""
    devices: tuple[str, ...] = ("cpu", "cuda")


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(2**-24),
    "tf32": Precision(2**-11, tf32=True, devices=("cuda",)),
    "bfloat16": Precision(2**-8, autocast=torch.bfloat16),
    "float16": Precision(2**-11, autocast=torch.float16, devices=("cuda",)),
}


class InPrecision(nn.Module):
    """An image encoder that runs in a precision whatever the arithmetic around it; its gradient follows the forward."""

    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images in the type that the precision has."""
        with products(self.name, images.device.type):
            features: Tensor = self.encoder(images)
        return features


def check_precision(name: str, device: str) -> None:
    """Raise UserError for a precision that is unknown, or that the device does not have."""
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: it is one of {', '.join(PRECISIONS)}")
    devices = PRECISIONS[name].devices
    if device not in devices:
        raise UserError(
            f"the protocol computes in {name}, which is there on {' and '.join(devices)} alone and would"
            f" be another number on {device}: take --device {devices[0]}, or a --protocol in float32"
        )


@contextmanager
def products(name: str, device: str) -> Iterator[None]:
    """Let products on a device be what a precision says, autocast included, whatever is around them."""
    kind = PRECISIONS[name].autocast
    with arithmetic(name), torch.autocast(device, dtype=kind, enabled=kind is not None):
        yield


@contextmanager
def arithmetic(name: str = "float32") -> Iterator[None]:
    """Let products of float32 numbers be what a precision says, on and off a GPU, and put all back after.

    Without it TF32 rounds them as torch's own settings have it. Convolutions are deterministic.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic
    except RuntimeError as error:
        raise UserError(
            "torch's precision was set by fp32_precision in this process, and by allow_tf32 it can no longer be read or"
            " put back: leave it as it is, since the protocol chooses it"
        ) from error
    matmul.allow_tf32 = convolution.allow_tf32 = PRECISIONS[name].tf32
    convolution.benchmark, convolution.deterministic = False, True
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic = before
