"""Measure the throughput of candidate image encoders for the embedded track, in passes per second.

python benchmarks/image_encoders.py --threads 1 --out image_encoders.json
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

ENCODERS = {
    "ViT patch 8, width 64, 4 layers": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 8},
    "ViT patch 4, width 64, 4 layers": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 4},
    "ResNet width 8": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "ResNet width 12": {"layers": [1, 1, 1, 1], "width": 12, "head_width": 64},
    "ResNet width 16": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
}
TEXT = {"context_length": 24, "vocab_size": 100, "width": 64, "heads": 2, "layers": 1}


def passes_per_second(step: Callable[[], object], batch: int, seconds: float = 2.0) -> float:
    """Return how many images per second a step processes, measured for some seconds."""
    for _ in range(3):
        step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        count += batch
    return count / (time.perf_counter() - started)


def measure(encoder: nn.Module, images: Tensor) -> dict[str, float]:
    """Return passes per second without and with a gradient, for images, float32 [B, 3, H, W] in [0, 1]."""

    def forward() -> None:
        with torch.no_grad():
            encoder(images)

    def backward() -> None:
        pixels = images.detach().requires_grad_()
        torch.autograd.grad(encoder(pixels).sum(), pixels)

    return {
        "forward": round(passes_per_second(forward, len(images))),
        "forward+backward": round(passes_per_second(backward, len(images))),
    }


def main() -> None:
    """Read the command line, measure all encoders, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        **vars(options),
        "image encoders": {},
    }
    report.pop("out")
    rows = {}
    for name, config in ENCODERS.items():
        network = open_clip.CLIP(embed_dim=64, vision_cfg={"image_size": 32, **config}, text_cfg=TEXT)
        encoder = network.visual.eval().requires_grad_(False)
        images = torch.rand(options.batch, 3, 32, 32)
        plain = measure(encoder, images)
        order = torch.channels_last
        last = measure(encoder.to(memory_format=order), images.to(memory_format=order))
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        rows[name] = {"parameters": parameters, "contiguous": plain, "channels last": last}
        print(f"{name:34s} {parameters / 1e6:5.2f} M  contiguous {plain}  channels last {last}")
    if options.out:
        options.out.write_text(json.dumps({**report, "image encoders": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
