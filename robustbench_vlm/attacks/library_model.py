"""A classifier as the torch module that other attack libraries expect, with their passes counted."""

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.classifier_interface import Classifier


class LibraryModel(nn.Module):
    """A classifier as a torch module: copied float32 logits, contiguous gradients, passes counted for each image.

    Libraries write into logits, take views of gradients, and ask the parameters for the device.
    """

    def __init__(self, classifier: Classifier, device: torch.device) -> None:
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
        """Return the forward and backward passes of each sample, (B,): the mean, which is all that libraries report."""
        count = max(len(batch.labels), 1)
        forward = torch.full_like(batch.labels, round(self.images_forward / count))
        return forward, torch.full_like(batch.labels, round(self.images_backward / count))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, network: LibraryModel) -> Tensor:
        ctx.network = network
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.network.images_backward += len(gradients[0])
        return gradients[0].contiguous(), None


def seed_of(batch: Batch) -> int:
    """Return the seed, in [0, 2**32), of a library that draws for whole batches: from the first sample's key."""
    return int(batch.keys[0]) % 2**32
