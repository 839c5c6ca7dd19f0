"""Attack throughput of our code, torchattacks and the official AutoAttack in one process.

All implementations get the same network, images and labels. The script first checks that our image encoder gives the
embeddings of open_clip's, and that no other attack breaks more samples than ours. A pass with a gradient counts as two
passes.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gpu_parts.networks import CLASSES, network_of, samples_of, timed
from gpu_parts.settings import Settings
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.models.classifier import Model, ZeroShotClassifier
from robustbench_vlm.models.precision import PRECISIONS, arithmetic

LESS_ROBUST = 0.02
"""Largest share of the samples that may be robust under our attack and not under another, because the attacks start at
different random points."""
KERNELS = 10
"""Number of kernels that the profile lists."""

Implementation = Callable[[nn.Module, Batch], Tensor]


class Counted(nn.Module):
    """A classifier that counts the images that pass through it without and with a gradient."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.passed: Counter[str] = Counter()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        logits: Tensor = self.classifier(images)
        self.passed["gradient" if logits.requires_grad else "forward"] += len(images)
        return logits


def measure(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Check and time all attacks on each network in each precision, with the first batch size."""
    found: dict[str, Any] = {"ceilings": {}, "networks": {}, "summary": []}
    for precision in settings.precisions:
        if settings.device in PRECISIONS[precision].devices:
            found["ceilings"][precision] = ceiling_of(precision, settings)
    for name in settings.networks:
        rows: dict[str, Any] = {}
        found["networks"][name] = rows
        model = network_of(name, settings.device)
        exact = model.classifier([f"a photo of a {number}." for number in range(CLASSES)]).to(settings.device)
        batch = samples_of(model, exact, settings.images, settings.eps, settings.device)
        check_encoder(model, exact, batch.images[:2])
        rows["flops"] = flops_of(exact, batch.images[:2])
        for attack in settings.throughput_attacks:
            rows[attack] = {}
            for precision, ceiling in found["ceilings"].items():
                sides = compare(attack, precision, exact, batch, settings)
                for who, row in sides.items():
                    work = sum(count * rows["flops"][kind] for kind, count in row["passed"].items())
                    row["share of the ceiling"] = work / row["seconds"] / ceiling
                    found["summary"].append(
                        f"{name} {attack} {precision} {who}: {row['passes a second']:.0f} passes per second,"
                        f" {row['share of the ceiling']:.0%} of the ceiling, {row['robust']:.0%} robust"
                    )
                    print(found["summary"][-1], flush=True)
                rows[attack][precision] = sides
                store(found)
        rows["batch sizes"] = over_batch_sizes(model, exact, settings)
        rows["profile"] = profile(exact, batch, settings)
        store(found)
    return found


def compare(
    attack: str, precision: str, exact: ZeroShotClassifier, batch: Batch, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Return the time and memory of each implementation; raise RuntimeError if our attack is weaker in float32."""
    attacked = exact.in_precision(precision)
    judge = None if precision == "float32" else exact.in_precision("float32")
    size = settings.batch_sizes[0]

    def ours(classifier: nn.Module, samples: Batch) -> Tensor:
        return attack_samples(classifier, samples, load_attack(attack), batch_size=size, judge=judge).robust

    with arithmetic(precision):
        rows = {who: timed_run(run, attacked, batch, settings) for who, run in {"ours": ours, **others(attack)}.items()}
    for who, row in rows.items():
        if precision == "float32" and rows["ours"]["robust"] > row["robust"] + LESS_ROBUST:
            raise RuntimeError(f"our {attack} leaves more samples robust than {who}, so the times are not comparable")
    return rows


def others(attack: str) -> dict[str, Implementation]:
    """Return the other implementations of an attack: torchattacks' PGD, or the stage of the official AutoAttack.

    For PGD the result is empty if torchattacks is not installed. That package is optional, because it requires an old
    version of requests.
    """
    from pyautoattack import AutoAttack

    def pgd(classifier: nn.Module, batch: Batch) -> Tensor:
        import torchattacks

        eps = float(batch.threat.eps)
        found = torchattacks.PGD(classifier, eps=eps, alpha=eps / 4, steps=int(attack.removeprefix("pgd-")))
        return still_right(classifier, found(batch.images, batch.labels), batch.labels)

    def official(classifier: nn.Module, batch: Batch) -> Tensor:
        eps, device = float(batch.threat.eps), batch.images.device.type
        found = AutoAttack(classifier, norm="Linf", eps=eps, seed=0, version="standard", device=device)
        found.attacks_to_run = [attack]
        _, predictions = found.run_standard_evaluation(batch.images, batch.labels, batch_size=len(batch.labels))
        return (predictions.to(batch.labels.device) == batch.labels).cpu()

    if not attack.startswith("pgd-"):
        return {"pyautoattack": official}
    return {"torchattacks": pgd} if importlib.util.find_spec("torchattacks") else {}


def still_right(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images are classified as their labels, bool [B]. The images are float32 [B, 3, H, W] in [0, 1]."""
    with torch.no_grad():
        return (classifier(images).argmax(dim=1) == labels).cpu()


def timed_run(run: Implementation, classifier: nn.Module, batch: Batch, settings: Settings) -> dict[str, Any]:
    """Return the share of robust samples, and the time and memory of the fastest of several runs."""
    counted = Counted(classifier)
    counted(batch.images.clone().requires_grad_()).sum().backward()
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = []
    for _ in range(settings.rounds):
        counted.passed.clear()
        robust, seconds = timed(lambda: run(counted, batch), settings.device)
        runs.append((seconds, robust, dict(counted.passed)))
    seconds, robust, passed = min(runs, key=lambda each: each[0])
    passes = passed.get("forward", 0) + 2 * passed.get("gradient", 0)
    return {
        "robust": robust.double().mean().item(),
        "seconds": seconds,
        "passed": passed,
        "passes a second": passes / seconds,
        "peak memory": torch.cuda.max_memory_allocated() if settings.device == "cuda" else None,
    }


def over_batch_sizes(model: Model, exact: ZeroShotClassifier, settings: Settings) -> dict[str, Any]:
    """Return passes per second and peak memory of the first attack at each batch size that fits."""
    rows: dict[str, Any] = {}
    attack = load_attack(settings.throughput_attacks[0])
    for size in settings.batch_sizes:
        batch = samples_of(model, exact, size, settings.eps, settings.device)
        try:
            row = timed_run(
                lambda classifier, samples, size=size: (
                    attack_samples(classifier, samples, attack, batch_size=size).robust
                ),
                exact,
                batch,
                settings,
            )
        except torch.OutOfMemoryError as error:
            rows[str(size)] = {"error": str(error).partition("\n")[0]}
            break
        rows[str(size)] = {key: row[key] for key in ("passes a second", "peak memory", "robust")}
        print(f"{model.name} batch size {size}: {json.dumps(rows[str(size)])}", flush=True)
    return rows


def profile(classifier: nn.Module, batch: Batch, settings: Settings) -> dict[str, Any]:
    """Return the kernels that take the most time in one run of the first attack, and the share of idle time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.device == "cuda" else [])
    attack = load_attack(settings.throughput_attacks[0])
    with record(activities=activities) as profiler:
        _, seconds = timed(
            lambda: attack_samples(classifier, batch, attack, batch_size=settings.batch_sizes[0]), settings.device
        )
    key = "self_device_time_total" if settings.device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    busy = sum(getattr(event, key) for event in events) / 1e6
    top = [{"kernel": event.key, "seconds": getattr(event, key) / 1e6, "calls": event.count} for event in events]
    return {"seconds": seconds, "busy": busy, "idle share": max(0.0, 1 - busy / seconds), "top": top[:KERNELS]}


def flops_of(classifier: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the floating-point operations of the matrix products in one image's pass, without and with a gradient."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        classifier(images)
    with FlopCounterMode(display=False) as gradient:
        classifier(images.clone().requires_grad_()).sum().backward()
    counts = {"forward": forward, "gradient": gradient}
    return {name: counter.get_total_flops() // len(images) for name, counter in counts.items()}


def ceiling_of(precision: str, settings: Settings) -> float:
    """Return the floating-point operations per second of a product of two large matrices."""
    size, kind = settings.matmul, PRECISIONS[precision].autocast or torch.float32
    first, second = (torch.randn(size, size, device=settings.device, dtype=kind) for _ in range(2))
    with arithmetic(precision):
        seconds = min(timed(lambda: first @ second, settings.device)[1] for _ in range(10))
    return 2 * size**3 / seconds


def check_encoder(model: Model, classifier: ZeroShotClassifier, images: Tensor) -> None:
    """Raise RuntimeError if our image encoder does not give open_clip's embeddings."""
    mean, std = classifier.encoder.mean, classifier.encoder.std
    with torch.no_grad(), arithmetic():
        theirs = functional.normalize(model.network.encode_image((images - mean) / std), dim=-1)
        difference = (classifier.image_features(images) - theirs).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(
            f"{model.name}: our image encoder and open_clip's differ by {difference}, so they are not timed"
        )
