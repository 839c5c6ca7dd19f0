"""Compare our AutoAttack with the official one (pyautoattack): the verdicts first, then the processor times.

    python benchmarks/autoattack.py --eps 2/255 8/255 --parts 2 --out benchmarks/autoattack.json

The data are images by class, a CIFAR-10 network, and a JSON file next to the weights with the names of the images and
the verdicts of the official code. Both implementations get the same network, images and number of threads. They run in
one process, in turns: for each part of the samples and each stage, first the official code, then ours. The report has
the processor time of each stage, and the share of it in forward and backward passes of the network.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from robustbench_vlm.engine.local import keep_freed_memory
from robustbench_vlm.models.fast_conv import with_fast_pixel_gradients

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = "weights/cifar10_cnn_a_adv.safetensors"
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
LEAST_AGREEMENT = 0.98
"""The smallest share of samples with the stored verdict for which times are compared."""
Run = Callable[..., Tensor]


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


class Timed(nn.Module):
    """A network that measures the processor time of its forward and backward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        begin = time.process_time()
        logits = self.network(_Mark.apply(images, self, 1))
        self.seconds += time.process_time() - begin
        return _Mark.apply(logits, self, -1)


class _Mark(torch.autograd.Function):
    """The identity, before and after the network. Its backward pass adds the processor time, or subtracts it."""

    @staticmethod
    def forward(context: Any, values: Tensor, timed: Timed, sign: int) -> Tensor:
        context.timed, context.sign = timed, sign
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        context.timed.seconds += context.sign * time.process_time()
        return gradient, None, None


def run_ours(model: nn.Module, batch: Batch, batch_size: int, stages: Sequence[str] = STAGES) -> Tensor:
    """Return which samples are robust against stages of our standard AutoAttack, bool [N]."""
    attack = load_attack("autoattack")
    attack = replace(attack, stages=tuple(stage for stage in attack.stages if stage.name in stages))
    verdict: Verdicts = attack_samples(model, batch, attack, batch_size=batch_size)
    return verdict.robust


def run_official(model: nn.Module, batch: Batch, stages: Sequence[str] = STAGES) -> Tensor:
    """Return which samples are robust against stages of the official AutoAttack according to its own loop, bool [N]."""
    from pyautoattack import AutoAttack

    official = AutoAttack(model, norm="Linf", eps=float(batch.threat.eps), seed=0, version="standard")
    official.attacks_to_run = list(stages)
    _, predictions = official.run_standard_evaluation(batch.images, batch.labels, batch_size=len(batch.labels))
    return predictions == batch.labels


def run_stage(run: Run, network: nn.Module, batch: Batch, robust: Tensor, stage: str) -> dict[str, float]:
    """Attack the samples that are still robust with one stage, and change `robust`, bool [N].

    Returns the processor time of the stage and of the passes of the network in it, in seconds.
    """
    timed, active = Timed(network), robust.nonzero().squeeze(1)
    begin = time.process_time()
    if len(active):
        robust[active] = run(timed, batch.at(active), stages=[stage])
    return {"seconds": time.process_time() - begin, "network": timed.seconds}


def compare(arguments: argparse.Namespace, eps: str) -> Iterator[dict[str, Any]]:
    """Compare the verdicts at one eps with the stored ones, and the times with those of the official code.

    Yields a report of all finished parts of the samples after each part.
    """
    model, batch, stored = read_reference(arguments.images, arguments.weights, eps)
    quick = with_fast_pixel_gradients(copy.deepcopy(model))
    runs: dict[str, tuple[Run, nn.Module]] = {
        "official": (run_official, model),
        "ours": (functools.partial(run_ours, batch_size=arguments.batch_size), quick),
    }
    spent: list[dict[str, Any]] = []
    robust: dict[str, list[Tensor]] = {name: [] for name in runs}
    expected: list[Tensor] = []
    for number in range(arguments.parts):
        places = torch.arange(number, min(arguments.samples, len(stored)), arguments.parts)
        found = {name: torch.ones(len(places), dtype=torch.bool) for name in runs}
        for stage in STAGES:
            for name, (run, network) in runs.items():
                times = run_stage(run, network, batch.at(places), found[name], stage)
                spent.append({"part": number, "code": name, "stage": stage, **times})
                print(eps, spent[-1], flush=True)
        expected.append(stored[places])
        for name in runs:
            robust[name].append(found[name])
        verdicts = {name: _verdicts(torch.cat(each), torch.cat(expected)) for name, each in robust.items()}
        yield {"eps": eps, "images": len(torch.cat(expected)), "verdicts": verdicts, **_summary(spent)}


def _verdicts(robust: Tensor, stored: Tensor) -> dict[str, float]:
    """Return the robust accuracy, and the share of samples with the stored verdict."""
    return {"robust": robust.double().mean().item(), "as_stored": (robust == stored).double().mean().item()}


def _summary(spent: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of seconds for each code and stage, and the ratios of the official time to ours."""

    def total(key: str, **wanted: object) -> float:
        chosen = [each for each in spent if all(each[name] == value for name, value in wanted.items())]
        return float(sum(each[key] for each in chosen))

    codes = ("official", "ours")
    parts = sorted({each["part"] for each in spent})
    return {
        "speedup": total("seconds", code="official") / total("seconds", code="ours"),
        "speedup_of_parts": [
            total("seconds", code="official", part=part) / total("seconds", code="ours", part=part) for part in parts
        ],
        # The speedup if our code spent no time outside of the network.
        "largest_speedup": total("seconds", code="official") / total("network", code="ours"),
        **{code: {key: total(key, code=code) for key in ("seconds", "network")} for code in codes},
        "stages": {
            stage: {code: {key: total(key, code=code, stage=stage) for key in ("seconds", "network")} for code in codes}
            for stage in STAGES
        },
    }


def main() -> None:
    """Read the command line, compare at each eps, and exit with an error if our verdicts are wrong."""
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--images", type=Path, default=DATA / "real")
    parser.add_argument("--weights", type=Path, default=DATA / WEIGHTS)
    parser.add_argument("--eps", nargs="+", default=["2/255", "8/255"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=200, help="number of images, the first ones (default: all)")
    parser.add_argument("--parts", type=int, default=2, help="number of parts of the samples")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # This also speeds up the official code.
    keep_freed_memory()
    records: list[dict[str, Any]] = []
    for eps in arguments.eps:
        for record in compare(arguments, eps):
            report.write({**report.machine(), "comparisons": [*records, record]}, arguments.out)
        records.append(record)
    if any(record["verdicts"]["ours"]["as_stored"] < LEAST_AGREEMENT for record in records):
        raise SystemExit(
            "our verdicts do not match the stored ones, so the times are not comparable: run tests/attacks first"
        )


if __name__ == "__main__":
    main()
