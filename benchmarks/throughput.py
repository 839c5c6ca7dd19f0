"""Attacks on vision transformers at random initialisation, beside torchattacks and the official AutoAttack.

    python benchmarks/throughput.py --device cuda --out benchmarks/throughput.json

Checks first: the tower against open_clip's own, and that ours leaves no more samples robust than the others do, in
float32. Then times: passes a second, the share of the machine's own matrix products that they are, peak memory, and how
many of our verdicts each precision changes. All get the same network, images and labels, which are the network's own
answers. Needs `pip install --no-deps torchattacks`. `--quick` is a trial of the script on a CPU, and no measurement.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import report
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier
from robustbench_vlm.models.open_clip import Architecture, load_architecture
from robustbench_vlm.models.precision import PRECISIONS, arithmetic

TINY = Architecture(
    {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
QUICK = {"model": ["tiny"], "attack": ["pgd-3", "autoattack"], "eps": "4/255", "images": 4, "matmul": 256, "rounds": 1}
LESS_ROBUST = 0.02
"""Ours may leave this share of the samples more robust than the others: they start at other random points."""

Side = Callable[[nn.Module, Batch], Tensor]


class Counted(nn.Module):
    """A classifier that counts the images that pass it without and with a gradient."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.passed: Counter[str] = Counter()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits = self.classifier(images)
        self.passed["gradient" if logits.requires_grad else "forward"] += len(images)
        return logits


def network_of(name: str, device: str) -> Model:
    architecture = TINY if name == "tiny" else load_architecture(f"open_clip:{name}")
    torch.manual_seed(0)
    return Model(name, "", architecture.build().eval().requires_grad_(False).to(device), architecture)


def samples_of(model: Model, classifier: nn.Module, options: argparse.Namespace) -> Batch:
    """Return noise with the classifier's own answers as labels, so that every sample has to be attacked."""
    side, count = model.architecture.image_size, options.images
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(options.device)
    with torch.no_grad():
        labels = torch.cat([classifier(part).argmax(dim=1) for part in images.split(options.batch_size)])
    keys = sample_keys(0, "throughput", [str(number) for number in range(count)]).to(options.device)
    classes = torch.full_like(labels, options.classes)
    return Batch(images, labels, keys, Threat("Linf", parse_eps(options.eps)), classes)


def ours(attack: str, judge: nn.Module | None, batch_size: int) -> Side:
    def run(classifier: nn.Module, batch: Batch) -> Tensor:
        return attack_samples(classifier, batch, load_attack(attack), batch_size=batch_size, judge=judge).robust

    return run


def others(attack: str, batch_size: int) -> dict[str, Side]:
    """Return the other implementations of an attack, by name."""
    import torchattacks
    from pyautoattack import AutoAttack

    def pgd(classifier: nn.Module, batch: Batch) -> Tensor:
        eps, steps = float(batch.threat.eps), int(attack.removeprefix("pgd-"))
        found = torchattacks.PGD(classifier, eps=eps, alpha=eps / 4, steps=steps)
        parts = zip(batch.images.split(batch_size), batch.labels.split(batch_size), strict=True)
        return torch.cat([_right(classifier, found(images, labels), labels) for images, labels in parts])

    def official(classifier: nn.Module, batch: Batch) -> Tensor:
        eps, device = float(batch.threat.eps), batch.images.device.type
        found = AutoAttack(classifier, norm="Linf", eps=eps, seed=0, version="standard", device=device)
        _, predictions = found.run_standard_evaluation(batch.images, batch.labels, batch_size=batch_size)
        return (predictions.to(batch.labels.device) == batch.labels).cpu()

    return {"pyautoattack": official} if attack == "autoattack" else {"torchattacks": pgd}


def _right(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return (classifier(images).argmax(dim=1) == labels).cpu()


def flops_of(classifier: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the floating-point operations of the products in one image's pass, without and with a gradient."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        classifier(images)
    with FlopCounterMode(display=False) as gradient:
        classifier(images.clone().requires_grad_()).sum().backward()
    return {
        "forward": forward.get_total_flops() // len(images),
        "gradient": gradient.get_total_flops() // len(images),
    }


def ceiling_of(precision: str, options: argparse.Namespace) -> float:
    """Return the floating-point operations a second of a large product of two matrices."""
    size, kind = options.matmul, PRECISIONS[precision].autocast or torch.float32
    first, second = (torch.randn(size, size, device=options.device, dtype=kind) for _ in range(2))
    with arithmetic(precision):
        seconds = min(timed(lambda: first @ second, options.device)[1] for _ in range(10))
    return 2 * size**3 / seconds


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def measured(
    side: Side, classifier: nn.Module, batch: Batch, options: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """Return which samples stay robust, and what the best of several runs cost."""
    counted = Counted(classifier)
    counted(batch.images[: options.batch_size].clone().requires_grad_()).sum().backward()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = []
    for _ in range(options.rounds):
        counted.passed.clear()
        runs.append(timed(lambda: side(counted, batch), options.device))
    robust, seconds = min(runs, key=lambda each: each[1])
    passes = counted.passed["forward"] + 2 * counted.passed["gradient"]
    memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else None
    return robust, {
        "robust": robust.double().mean().item(),
        "seconds": seconds,
        "passed": dict(counted.passed),
        "passes a second": passes / seconds,
        "peak memory": memory,
    }


def check_tower(model: Model, classifier: ZeroShotClassifier, images: Tensor) -> None:
    """End the benchmark where our image tower is not open_clip's."""
    mean, std = classifier.encoder.mean, classifier.encoder.std
    with torch.no_grad(), arithmetic():
        theirs = functional.normalize(model.network.encode_image((images - mean) / std), dim=-1)
        difference = (classifier.image_features(images) - theirs).abs().max().item()
    if difference > 1e-4:
        raise SystemExit(f"{model.name}: our tower and open_clip's differ by {difference}: nothing is timed")


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Check and time all attacks on one network, in every precision that the device has."""
    model = network_of(name, options.device)
    exact = model.classifier([f"a photo of a {number}." for number in range(options.classes)]).to(options.device)
    batch = samples_of(model, exact, options)
    check_tower(model, exact, batch.images[:2])
    flops = flops_of(exact, batch.images[:2])
    found: dict[str, Any] = {"flops": flops}
    for attack in options.attack:
        verdicts, found[attack] = {}, {}
        for precision in options.precision:
            verdicts[precision], rows = compare_sides(attack, precision, exact, batch, options)
            for who, row in rows.items():
                work = sum(count * flops[kind] for kind, count in row["passed"].items())
                row["share of the ceiling"] = work / row["seconds"] / options.ceilings[precision]
                print(f"{name} {attack} {precision} {who}: {json.dumps(row)}", flush=True)
            if precision == "float32":
                check_verdicts(name, attack, rows)
            differ = int((verdicts[precision] != verdicts["float32"]).sum())
            found[attack][precision] = {"sides": rows, "verdicts other than in float32": differ}
    return found


def compare_sides(
    attack: str, precision: str, exact: ZeroShotClassifier, batch: Batch, options: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """Return our verdicts, and what each implementation cost."""
    attacked = exact.in_precision(precision)
    judge = None if precision == "float32" else exact.in_precision("float32")
    sides = {"ours": ours(attack, judge, options.batch_size), **others(attack, options.batch_size)}
    with arithmetic(precision):
        found = {who: measured(side, attacked, batch, options) for who, side in sides.items()}
    return found["ours"][0], {who: row for who, (_, row) in found.items()}


def check_verdicts(name: str, attack: str, rows: Mapping[str, Any]) -> None:
    """End the benchmark where our attack is the weaker one."""
    for who, row in rows.items():
        if rows["ours"]["robust"] > row["robust"] + LESS_ROBUST:
            raise SystemExit(f"{name}: ours leaves more robust under {attack} than {who}: the times mean nothing")


def main() -> None:
    """Read the command line, and measure."""
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--model", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--attack", nargs="+", default=["pgd-20", "autoattack"])
    parser.add_argument("--precision", nargs="+", default=["float32", "tf32", "bfloat16"], choices=PRECISIONS)
    parser.add_argument("--eps", default="1/255", help="at which some samples of a random network fall")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--matmul", type=int, default=8192, help="rows of the matrices of the ceiling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    torch.set_num_threads(options.threads)
    kept = [each for each in options.precision if options.device in PRECISIONS[each].devices]
    options.ceilings = {precision: ceiling_of(precision, options) for precision in dict.fromkeys(["float32", *kept])}
    options.precision = list(options.ceilings)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "ceilings")}
    found = {name: compare(name, options) for name in options.model}
    whole = {**report.machine(options.device), "settings": settings, "ceilings": options.ceilings, "models": found}
    print(json.dumps(whole, indent=1))
    report.write(whole, options.out)


if __name__ == "__main__":
    main()
