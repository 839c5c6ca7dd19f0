"""Compare our training step with the same recipe on open_clip's image encoder and torchattacks' PGD.

The script compares the numbers of passes and the times. It checks first that both implementations give the same loss.
It needs `pip install --no-deps torchattacks`.

    python benchmarks/training.py --defense tecoa agft --threads 1 --out benchmarks/training.json
"""

import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import report
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.defenses.base import LossContext
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import make_student, train_step
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.optim import make_optimizer
from robustbench_vlm.training.request import TrainingRequest, make_job

EPS = Fraction(6, 255)


class Logits(nn.Module):
    """A model for torchattacks that computes logits with open_clip's image encoder."""

    def __init__(self, encoder: nn.Module, text_features: Tensor, scale: float) -> None:
        super().__init__()
        self.encoder, self.text_features, self.scale = encoder, text_features, scale

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, C], of images, float32 [B, 3, H, W] in [0, 1]."""
        return self.scale * functional.normalize(self.encoder(images), dim=-1) @ self.text_features.T


@dataclass(frozen=True)
class Side:
    """One implementation of a training step, with the number of passes that it has made."""

    name: str
    step: Callable[[], float]
    loss: Callable[[], float]
    counts: Counter[str]


def counted(counts: Counter[str], what: str, module: nn.Module) -> nn.Module:
    """Return the module after it was changed to count its forward passes under the name `what`."""
    module.register_forward_hook(lambda *arguments: counts.update([what]))
    return module


def student_of(job: Job, counts: Counter[str]) -> ImageEncoder:
    """Return a new student that counts the gradients of its weights."""
    student = make_student(job)
    weight = next(student.parameters())
    weight.register_post_accumulate_grad_hook(lambda parameter: counts.update(["gradients of the weights"]))
    return student


def texts_of(job: Job, counts: Counter[str]) -> Tensor:
    """Return the unit text features of all classes, float32 [C, D], and count the call."""
    counts.update(["embeddings of the texts"])
    return job.model.text_features(job.dataset.prompts)


def ours(job: Job, images: Tensor, labels: Tensor) -> Side:
    """Return our training step on images, float32 [B, 3, H, W] in [0, 1], and labels, int64 [B]."""
    counts: Counter[str] = Counter()
    student, processes = student_of(job, counts), Processes("cpu")
    optimizer = make_optimizer(student, job.schedule)
    teacher = counted(counts, "teacher", job.model.encoder)
    text_features = texts_of(job, counts)
    keys = sample_keys(0, "benchmark", [str(number) for number in range(len(images))])

    def context() -> LossContext:
        current = ImageEncoder(folded(student.visual), job.model.architecture).eval()
        clean = functools.cache(lambda: teacher(images).detach())
        student_now = counted(counts, "student", current)
        return LossContext(images, labels, keys, student_now, teacher, clean, text_features, job.defense.settings)

    def loss() -> float:
        with torch.no_grad():
            return job.defense.loss(context(), images).mean().item()

    return Side("ours", lambda: train_step(job, context(), optimizer, processes)[0], loss, counts)


def plain(job: Job, images: Tensor, labels: Tensor) -> Side:
    """Return the recipe as released codes implement it.

    The teacher and the text features are computed in every step, and the attack is torchattacks' PGD. The arguments
    are those of `ours`.
    """
    counts: Counter[str] = Counter()
    student = counted(counts, "student", student_of(job, counts))
    optimizer = make_optimizer(student, job.schedule)
    visual = job.model.network.get_submodule("visual")
    teacher = counted(counts, "teacher", ImageEncoder(visual, job.model.architecture).eval())
    scale = job.defense.settings["scale"]

    def make_targets() -> tuple[nn.Module, Tensor]:
        text_features = texts_of(job, counts)
        if "gamma" not in job.defense.settings:
            return Logits(student, text_features, scale), labels
        with torch.no_grad():
            scores = Logits(teacher, text_features, scale * job.defense.settings["gamma"])(images)
        return Logits(student, text_features, scale), scores.softmax(dim=1)

    def loss() -> float:
        model, targets = make_targets()
        with torch.no_grad():
            return functional.cross_entropy(model(images), targets).item()

    def step() -> float:
        model, targets = make_targets()
        attack = torchattacks.PGD(model, eps=float(EPS), alpha=float(EPS), steps=job.defense.inner.steps)
        value = functional.cross_entropy(model(attack(images, targets)), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.item()

    return Side("torchattacks", step, loss, counts)


def measure(name: str, batch: int, rounds: int) -> dict[str, object]:
    """Return the passes and times of both implementations of a defense's training step."""
    job = make_job(TrainingRequest(name, "mini", eps=EPS, num_images=batch, settings={"batch_size": batch, "lr": 1e-6}))
    images, labels = job.images.read(range(batch)).float() / 255, job.images.labels
    sides = [ours(job, images, labels), plain(job, images, labels)]
    losses = [side.loss() for side in sides]
    if abs(losses[0] - losses[1]) > 1e-3 * abs(losses[1]):
        raise SystemExit(f"{name}: the losses of the two implementations differ ({losses}), so they are not timed")
    for side in sides:
        side.counts.clear()
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            started = time.perf_counter()
            side.step()
            seconds[side.name].append(time.perf_counter() - started)
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "inner steps": job.defense.inner.steps,
        "loss": dict(zip(middle, losses, strict=True)),
        "passes of a step": {
            side.name: {what: number / rounds for what, number in side.counts.items()} for side in sides
        },
        "milliseconds": {side: round(1000 * value, 1) for side, value in middle.items()},
        "times as fast": round(middle["torchattacks"] / middle["ours"], 2),
    }


def main() -> None:
    """Read the command line, measure each defense, and print the report."""
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--defense", nargs="+", default=["tecoa", "agft"], choices=["tecoa", "agft"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measure(name, options.batch, options.rounds) for name in options.defense}
    whole = {**report.machine(), "batch": options.batch, "defenses": found}
    print(json.dumps(whole, indent=1))
    report.write(whole, options.out)


if __name__ == "__main__":
    main()
