"""A classifier dressed as the network that other attack libraries expect; it counts their passes."""

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.base import Batch, Logits


class CountedNetwork(nn.Module):
    """A classifier as a module: float32 logits of their own memory, contiguous gradients, passes counted per image.

    Libraries take views of gradients, write into logits, and ask the parameters for the device.
    """

    def __init__(self, classifier: Logits, device: torch.device) -> None:
        super().__init__()
        self.classifier = classifier
        self.images_forward = 0
        self.images_backward = 0
        self.anchor = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits (B, C)."""
        self.images_forward += len(images)
        gated: Tensor = _Gate.apply(images, self)
        return self.classifier(gated).float().clone()

    def passes_each(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the forward and backward passes per sample, (B,): the mean, since a library tells no more."""
        count = max(len(batch.labels), 1)
        forward = torch.full_like(batch.labels, round(self.images_forward / count))
        return forward, torch.full_like(batch.labels, round(self.images_backward / count))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, network: CountedNetwork) -> Tensor:
        ctx.network = network
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.network.images_backward += len(gradients[0])
        return gradients[0].contiguous(), None


def seed_of(batch: Batch) -> int:
    """Return the seed, in [0, 2**32), of a library that draws for whole batches: from the first sample's key."""
    return int(batch.keys[0]) % 2**32
