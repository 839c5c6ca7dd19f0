"""Throughput of candidate image towers for the embedded track: passes a second on this machine.

python benchmarks/towers.py --threads 1 --out towers.json
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

TOWERS = {
    "ViT patch 8, width 64, 4 layers": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 8},
    "ViT patch 4, width 64, 4 layers": {"layers": 4, "width": 64, "head_width": 32, "patch_size": 4},
    "ResNet width 8": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "ResNet width 12": {"layers": [1, 1, 1, 1], "width": 12, "head_width": 64},
    "ResNet width 16": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
}
TEXT = {"context_length": 24, "vocab_size": 100, "width": 64, "heads": 2, "layers": 1}


def passes_per_second(step: Callable[[], object], batch: int, seconds: float = 2.0) -> float:
    for _ in range(3):
        step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        count += batch
    return count / (time.perf_counter() - started)


def measure(tower: nn.Module, images: Tensor) -> dict[str, float]:
    def forward() -> None:
        with torch.no_grad():
            tower(images)

    def backward() -> None:
        pixels = images.detach().requires_grad_()
        torch.autograd.grad(tower(pixels).sum(), pixels)

    return {
        "forward": round(passes_per_second(forward, len(images))),
        "forward+backward": round(passes_per_second(backward, len(images))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, object] = {"machine": platform.processor() or platform.machine(), **vars(options), "towers": {}}
    report.pop("out")
    rows = {}
    for name, config in TOWERS.items():
        network = open_clip.CLIP(embed_dim=64, vision_cfg={"image_size": 32, **config}, text_cfg=TEXT)
        tower = network.visual.eval().requires_grad_(False)
        images = torch.rand(options.batch, 3, 32, 32)
        plain = measure(tower, images)
        order = torch.channels_last
        last = measure(tower.to(memory_format=order), images.to(memory_format=order))
        parameters = sum(parameter.numel() for parameter in tower.parameters())
        rows[name] = {"parameters": parameters, "contiguous": plain, "channels last": last}
        print(f"{name:34s} {parameters / 1e6:5.2f} M  contiguous {plain}  channels last {last}")
    if options.out:
        options.out.write_text(json.dumps({**report, "towers": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
