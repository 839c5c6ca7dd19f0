"""A dataset of stripes, drawn when read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_vlm.datasets.base import Dataset


class StripesSource:
    """Stripes that lie (label 0) or stand (label 1), as wide as the sample's number says."""

    ids = tuple(f"{number:02d}" for number in range(12))
    labels = tuple(number % 2 for number in range(12))

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._picture(index) for index in indices])

    def _picture(self, index: int) -> Tensor:
        stripes = (torch.arange(32) // (1 + index // 2) % 2 * 255).to(torch.uint8).expand(3, 32, 32)
        return (stripes if self.labels[index] else stripes.transpose(1, 2)).contiguous()


STRIPES = Dataset(
    name="stripes",
    classes=("lying", "standing"),
    prompt="a picture of {} stripes.",
    source="sample_plugin.datasets:StripesSource",
    description="stripes that lie or stand",
)
