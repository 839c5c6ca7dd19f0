"""Networks with random weights, and noise images that have the network's own predictions as labels."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.models.open_clip import Architecture, load_architecture

TINY = Architecture(
    {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
CLASSES = 10


def network_of(name: str, device: str) -> Model:
    """Return a CLIP with random weights; "tiny" is small enough for a CPU."""
    architecture = TINY if name == "tiny" else load_architecture(f"open_clip:{name}")
    torch.manual_seed(0)
    return Model(name, "", architecture.build().eval().requires_grad_(False).to(device), architecture)


def samples_of(model: Model, classifier: nn.Module, count: int, eps: str, device: str) -> Batch:
    """Return noise images that have the classifier's own predictions as labels, so that every sample is attacked."""
    size = model.architecture.image_size
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        labels = torch.cat([classifier(part).argmax(dim=1) for part in images.split(64)])
    keys = sample_keys(0, "throughput", [str(number) for number in range(count)]).to(device)
    return Batch(images, labels, keys, Threat("Linf", parse_eps(eps)), torch.full_like(labels, CLASSES))


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return the result of `work` and the seconds that it took, including the work of the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started
