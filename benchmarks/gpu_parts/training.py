"""Training on a device: steps of AGFT and TeCoA on a large network, and a small model from training to its score."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from gpu_parts.networks import network_of, timed
from gpu_parts.settings import Settings
from robustbench_vlm import evaluate
from robustbench_vlm.core.progress import ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import LossContext
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.finetune import Runtime, train_defense, train_step
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.optim import make_optimizer
from robustbench_vlm.training.request import TrainingRequest, make_job

CLASSES = 100


def time_steps(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Time training steps of AGFT and TeCoA on noise images, in float32 and bfloat16.

    Raises RuntimeError if a loss is not finite.
    """
    rows: list[dict[str, Any]] = []
    summary: list[str] = []
    for defense in ("agft", "tecoa"):
        for precision in ("float32", "bfloat16"):
            job, step = _step(defense, precision, settings)
            loss = step()
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"the loss of {defense} in {precision} is {loss}, expected a finite number: the step is not timed"
                )
            seconds = min(timed(step, settings.device)[1] for _ in range(settings.rounds))
            rate = job.schedule.batch_size / seconds
            rows.append(
                {"defense": defense, "precision": precision, "seconds a step": seconds, "images a second": rate}
            )
            summary.append(
                f"{defense} {precision}: {rate:.0f} images per second at batch size {job.schedule.batch_size}"
            )
            print(summary[-1], flush=True)
            store({"rows": rows, "summary": summary})
    return {"rows": rows, "summary": summary}


def _step(defense: str, precision: str, settings: Settings) -> tuple[Job, Callable[[], float]]:
    """Return a job, and a function that takes one training step of it on noise images and returns the loss."""
    count, device = settings.training_batch, settings.device
    base = make_job(
        TrainingRequest(
            defense, "mini", eps=Fraction(1, 255), num_images=count, settings={"batch_size": count, "lr": 1e-6}
        )
    )
    recipe = DEFENSES.load(defense)
    model = network_of(settings.training_network, device)
    job = dataclasses.replace(
        base, model=model, precision=precision, defense=dataclasses.replace(recipe, settings=base.defense.settings)
    )
    size = model.architecture.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator).to(device)
    labels = torch.randint(CLASSES, (count,), generator=generator).to(device)
    keys = sample_keys(0, "training", [str(number) for number in range(count)]).to(device)
    text_features = model.text_features([f"a photo of a {number}." for number in range(CLASSES)])
    student = ImageEncoder(model.network.visual.requires_grad_(True), model.architecture).to(device).eval()
    teacher = network_of(settings.training_network, device).encoder
    optimizer, processes = make_optimizer(student, job.schedule), Processes(device)

    def clean() -> torch.Tensor:
        with torch.no_grad():
            features: torch.Tensor = teacher(images)
        return features

    context = LossContext(images, labels, keys, student, teacher, clean, text_features, job.defense.settings)
    return job, lambda: train_step(job, context, optimizer, processes)[0]


def train_end_to_end(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Train AGFT on the embedded track for some steps, and evaluate the model."""
    request = TrainingRequest(
        "agft",
        "mini",
        num_images=max(256, settings.training_batch),
        settings={"steps": settings.steps, "batch_size": 64},
    )
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Path(folder) / "agft", Processes(settings.device), save_every=max(1, settings.steps // 2))
        card, seconds = timed(lambda: train_defense(request, runtime, ignore_progress), settings.device)
        result = evaluate(
            str(card), "pgd-10", samples=settings.samples, device=settings.device, out=f"{folder}/runs", workers=1
        )
        scores = result.to_pandas()
    found = {
        "steps": settings.steps,
        "training seconds": seconds,
        "clean": scores.clean.mean(),
        "robust": scores.robust.mean(),
    }
    return found | {"summary": [f"{settings.steps} steps in {seconds:.1f} s, clean {found['clean']:.1%}"]}
