"""Compare our AutoAttack with the official one (pyautoattack): the verdicts first, then the times.

    python benchmarks/autoattack.py --eps 2/255 --threads 2 --out autoattack.json

The script runs our AutoAttack twice: in its own process, and in one process per core as `vlmbench run` does. The data
are images by class, a CIFAR-10 network, and a JSON file next to the weights with the names of the images and the
verdicts of the official code. Each implementation gets the same network, images and number of threads, and they are
timed in turns.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.local import expect_workers, keep_freed_memory, run_jobs
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.models.fast_conv import with_fast_pixel_gradients

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = "weights/cifar10_cnn_a_adv.safetensors"


class Normalised(nn.Module):
    """The network of the stored verdicts. It normalises its input itself, so that eps is in pixel scale."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )
        self.layers.load_state_dict(load_file(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, 10], of images, float32 [B, 3, 32, 32] in [0, 1]."""
        return self.layers((images - self.mean) / 0.225)


def read_reference(images: Path, weights: Path, eps: str) -> tuple[nn.Module, Batch, Tensor]:
    """Return the network, the samples, and which of them are robust in the stored verdicts of the official code.

    The robust samples are bool [N].
    """
    stored = json.loads(weights.with_suffix(".reference.json").read_text())
    arrays = [np.asarray(Image.open(images / name).convert("RGB")) for name in stored["images"]]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255
    keys = sample_keys(0, "cifar10", stored["images"])
    labels = torch.tensor(stored["labels"])
    batch = Batch(pixels, labels, keys, Threat("Linf", parse_eps(eps)), torch.full_like(labels, 10))
    return Normalised(weights).eval(), batch, torch.tensor(stored["robust"][eps])


def run_ours(model: nn.Module, batch: Batch, batch_size: int) -> Tensor:
    """Return which samples are robust against our standard AutoAttack, bool [N]."""
    keep_freed_memory()
    verdict: Verdicts = attack_samples(model, batch, load_attack("autoattack"), batch_size=batch_size)
    return verdict.robust


def run_workers(arguments: argparse.Namespace, eps: str) -> Tensor:
    """Return which samples are robust against our standard AutoAttack in one process per thread, bool [N].

    Each process reads its samples itself, as the processes of `vlmbench run` do.
    """
    workers = arguments.threads
    task = functools.partial(_share, arguments.images, arguments.weights, eps, arguments.batch_size)
    parts = [(number, workers) for number in range(workers)]
    robust = torch.zeros(len(read_reference(arguments.images, arguments.weights, eps)[2]), dtype=torch.bool)
    for (first, step), answer in run_jobs(task, parts, Resources(workers=workers)):
        robust[first::step] = torch.tensor(answer)
    return robust


def _share(images: Path, weights: Path, eps: str, batch_size: int, part: tuple[int, int]) -> list[bool]:
    first, step = part
    model, batch, _ = read_reference(images, weights, eps)
    own = batch.at(torch.arange(first, len(batch.labels), step))
    return run_ours(with_fast_pixel_gradients(model), own, batch_size).tolist()


def run_official(model: nn.Module, batch: Batch) -> Tensor:
    """Return which samples are robust against the official standard AutoAttack according to its own loop, bool [N]."""
    from pyautoattack import AutoAttack

    official = AutoAttack(model, norm="Linf", eps=float(batch.threat.eps), seed=0, version="standard")
    _, predictions = official.run_standard_evaluation(batch.images, batch.labels, batch_size=len(batch.labels))
    return predictions == batch.labels


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Return the robust samples that `run` returns, bool [N], and its wall and processor time in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def compare(arguments: argparse.Namespace, eps: str) -> dict[str, object]:
    """Compare the verdicts at one eps with the stored ones, and the times with those of the official code."""
    model, batch, stored = read_reference(arguments.images, arguments.weights, eps)
    quick = with_fast_pixel_gradients(copy.deepcopy(model))
    # Our code runs last, because it makes the process keep freed memory, which would also speed up the official code.
    runs: dict[str, Callable[[], Tensor]] = {
        "official": lambda: run_official(model, batch),
        "ours": lambda: run_ours(quick, batch, arguments.batch_size),
        "workers": lambda: run_workers(arguments, eps),
    }
    record: dict[str, object] = {"eps": eps, "images": len(stored)}
    robust, seconds = {}, {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            robust[name], spent = timed(run)
            seconds[name].append(spent)
            agreement = (robust[name] == stored).double().mean().item()
            print(f"{eps} {name}: robust {robust[name].double().mean():.1%}, as stored {agreement:.1%} of the samples, "
                  f"{spent['wall']:.1f} s, {spent['processor']:.1f} s of processor time", flush=True)  # fmt: skip
            record[name] = {"robust": robust[name].double().mean().item(), "as_stored": agreement, **spent}
    record["right"] = all(_is_right(robust[name], stored) for name in ("ours", "workers"))
    for name in ("ours", "workers"):
        ratio = min(s["wall"] for s in seconds["official"]) / min(s["wall"] for s in seconds[name])
        record[f"{name}_times_as_fast"] = ratio
        print(f"{eps} {name}: {ratio:.2f} times as fast as the official code")
    return record


def _is_right(robust: Tensor, stored: Tensor) -> bool:
    gain = (robust.sum() - stored.sum()).item() / len(stored)
    return gain <= 0.005 and (robust == stored).double().mean().item() >= 0.98


def main() -> None:
    """Read the command line, compare at each eps, and exit with an error if our verdicts are wrong."""
    parser = report.parser_of(__doc__, threads=2)
    parser.add_argument("--images", type=Path, default=DATA / "real")
    parser.add_argument("--weights", type=Path, default=DATA / WEIGHTS)
    parser.add_argument("--eps", nargs="+", default=["2/255", "8/255"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    expect_workers(Resources(workers=arguments.threads))
    records = [compare(arguments, eps) for eps in arguments.eps]
    report.write({**report.machine(), "comparisons": records}, arguments.out)
    if not all(record["right"] for record in records):
        raise SystemExit(
            "our verdicts do not match the stored ones, so the times are not comparable: run tests/attacks first"
        )


if __name__ == "__main__":
    main()
