"""Adapter for other attack libraries: makes a classifier a torch module and counts its passes."""

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.classifier_interface import Classifier


class LibraryModel(nn.Module):
    """A torch module that calls a classifier and counts the images of its forward and backward passes.

    The logits are float32 copies, because libraries write into logits. The gradients are contiguous, because libraries
    take views of gradients. The module has a parameter, because libraries read the device from a parameter.
    """

    def __init__(self, classifier: Classifier, device: torch.device) -> None:
        super().__init__()
        self.classifier = classifier
        self.images_forward = 0
        self.images_backward = 0
        self.anchor = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) in [0, 1] and return float32 logits (B, C)."""
        self.images_forward += len(images)
        gated: Tensor = _Gate.apply(images, self)
        return self.classifier(gated).float().clone()

    def passes_each(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the forward and the backward passes of each sample, int64 (B,) each.

        Libraries do not report the passes of single samples. Therefore every sample gets the mean over the batch.
        """
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
    """Return a seed in [0, 2**32) for a library that draws its random numbers for a whole batch.

    The seed is computed from the key of the first sample.
    """
    return int(batch.keys[0]) % 2**32
