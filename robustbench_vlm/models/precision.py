"""Precisions: the number formats in which the image encoder and the logits are computed; losses are float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError


@dataclass(frozen=True)
class Precision:
    """The rounding of matrix products and convolutions."""

    rounding: float
    """The largest relative error of rounding one number."""
    tf32: bool = False
    """Whether products of float32 numbers are rounded to ten bits (TF32)."""
    autocast: torch.dtype | None = None
    """The dtype of torch's autocast; None: no autocast."""
    devices: tuple[str, ...] = ("cpu", "cuda")


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(2**-24),
    "tf32": Precision(2**-11, tf32=True, devices=("cuda",)),
    "bfloat16": Precision(2**-8, autocast=torch.bfloat16),
    "float16": Precision(2**-11, autocast=torch.float16, devices=("cuda",)),
}


class InPrecision(nn.Module):
    """An image encoder that runs in a precision, whatever precision is set around it; so does its gradient."""

    def __init__(self, encoder: nn.Module, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images in the dtype of the precision."""
        with products(self.name, images.device.type):
            features: Tensor = self.encoder(images)
        return features


def check_precision(name: str, device: str) -> None:
    """Raise UserError for an unknown precision, or one that the device does not have."""
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}: expected one of {', '.join(PRECISIONS)}")
    devices = PRECISIONS[name].devices
    if device not in devices:
        raise UserError(
            f"the protocol computes in {name}, which exists only on {' and '.join(devices)} and would give other"
            f" numbers on {device}: take --device {devices[0]}, or a --protocol in float32"
        )


@contextmanager
def products(name: str, device: str) -> Iterator[None]:
    """Compute products on a device in a precision, autocast included, whatever is set around it."""
    kind = PRECISIONS[name].autocast
    with arithmetic(name), torch.autocast(device, dtype=kind, enabled=kind is not None):
        yield


@contextmanager
def arithmetic(name: str = "float32") -> Iterator[None]:
    """Compute products of float32 numbers in a precision and make convolutions deterministic; restore torch after.

    Without it, torch's own settings decide whether TF32 is used.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic
    except RuntimeError as error:
        raise UserError(
            "torch's precision was set with fp32_precision in this process, so that allow_tf32 cannot be read or"
            " restored: do not set it, since the protocol chooses the precision"
        ) from error
    matmul.allow_tf32 = convolution.allow_tf32 = PRECISIONS[name].tf32
    convolution.benchmark, convolution.deterministic = False, True
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark, convolution.deterministic = before
