"""A dataset of stripes that are drawn when they are read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_vlm.datasets.base import Dataset


class StripesSource:
    """Horizontal (label 0) and vertical (label 1) stripes; the width grows with the sample number."""

    ids = tuple(f"{number:02d}" for number in range(12))
    labels = tuple(number % 2 for number in range(12))

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._draw(index) for index in indices])

    def _draw(self, index: int) -> Tensor:
        stripes = (torch.arange(32) // (1 + index // 2) % 2 * 255).to(torch.uint8).expand(3, 32, 32)
        return (stripes if self.labels[index] else stripes.transpose(1, 2)).contiguous()


STRIPES = Dataset(
    name="stripes",
    classes=("horizontal", "vertical"),
    prompt="an image of {} stripes.",
    source="sample_plugin.datasets:StripesSource",
    description="horizontal and vertical stripes",
)
