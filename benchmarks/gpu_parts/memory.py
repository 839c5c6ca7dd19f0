"""Behaviour without free memory on a device: the batch size is halved, and the verdicts stay the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_parts.networks import CLASSES, network_of, samples_of
from gpu_parts.settings import Settings
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.engine.resources import with_fitting_batch_size


class OutOfMemoryAbove(nn.Module):
    """A classifier that raises torch's own error for more than `limit` images, for devices without a memory limit."""

    def __init__(self, classifier: nn.Module, limit: int) -> None:
        super().__init__()
        self.classifier, self.limit = classifier, limit

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        if len(images) > self.limit:
            raise torch.OutOfMemoryError(f"out of memory: {len(images)} images, but only {self.limit} fit")
        logits: Tensor = self.classifier(images)
        return logits


def run_out_of_memory(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Attack with less memory than the batch needs, and compare the verdicts with those of a small batch.

    On a GPU, the allocator's limit is set to a quarter of the memory that the batch took. On a CPU, the network raises
    the error.
    """
    model = network_of(settings.networks[0], settings.device)
    classifier = model.classifier([f"a photo of a {number}." for number in range(CLASSES)]).to(settings.device)
    size = max(settings.batch_sizes)
    batch = samples_of(model, classifier, size, settings.eps, settings.device)
    attack = load_attack(settings.throughput_attacks[0])
    small = attack_samples(classifier, batch, attack, batch_size=2).robust
    if settings.device == "cuda":
        attack_samples(classifier, batch, attack, batch_size=size)
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        fixed = torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((fixed + (peak - fixed) / 4) / total)
        limited: nn.Module = classifier
    else:
        limited = OutOfMemoryAbove(classifier, size // 2)
    try:
        robust, fitted = with_fitting_batch_size(
            lambda count: attack_samples(limited, batch, attack, batch_size=count).robust, size
        )
    finally:
        if settings.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    different = int((robust != small).sum())
    if fitted >= size or different:
        raise RuntimeError(
            f"batch size {size} became {fitted} (expected: smaller), and {different} verdicts differ (expected: 0)"
        )
    summary = [f"batch size {size} became {fitted}, and no verdict of {len(robust)} differs"]
    return {"asked": size, "fitted": fitted, "different": different, "summary": summary}
