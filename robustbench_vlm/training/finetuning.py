"""Adversarial fine-tuning of the image tower: one loop for every defense.

The inner attack ascends the defense's own loss, summed over samples and in float32; random numbers belong to the sample
and the step, so that a run that was killed and resumed ends in the same weights.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm import randomness
from robustbench_vlm.datasets.dataset import Dataset
from robustbench_vlm.defenses.defense import Context, Defense, InnerAttack, Schedule
from robustbench_vlm.errors import UserError
from robustbench_vlm.files import write_whole
from robustbench_vlm.models.clip import ImageEncoder, Model
from robustbench_vlm.models.folding import folded
from robustbench_vlm.threats import Threat, project

_OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Job:
    """One fine-tuning: which defense, from which model, on which pictures, against which threat."""

    defense: Defense
    schedule: Schedule
    model: Model
    dataset: Dataset
    pictures: int
    """How many of the data set's pictures, from its beginning."""
    eps: Fraction
    seed: int = 0
    save_every: int = 200

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.schedule.steps or self.schedule.epochs * (self.pictures // self.schedule.batch)


def finetune(job: Job, folder: Path, tell: Callable[[str], object]) -> nn.Module:
    """Train and return the image tower; a run that was killed goes on from its last checkpoint in `folder`.

    Raises UserError when the loss is no longer finite; the last good checkpoint stays.
    """
    student, teacher = _encoder(job.model), job.model.encoder
    optimizer = _optimizer(student, job.schedule)
    checkpoint = folder / "checkpoint.pt"
    first = _resume(student, optimizer, checkpoint)
    images, labels = _pictures(job)
    text_features = job.model.text_features(job.dataset.prompts)
    started = time.monotonic()
    for step in range(first, job.steps):
        _set_rate(optimizer, job, step)
        rows = _rows(job, step)
        clean = images[rows].to(torch.float32) / 255
        with torch.no_grad():
            teacher_clean = teacher(clean)
        # The short form of the weights as they are now: all passes of a step share it.
        current = ImageEncoder(folded(student.visual), job.model.architecture).eval()
        context = Context(
            images=clean,
            labels=labels[rows],
            student=current,
            teacher=teacher,
            teacher_clean=teacher_clean,
            text_features=text_features,
            settings=job.defense.settings,
            student_dense=current.dense,
            teacher_dense=teacher.dense,
        )
        loss = train_step(context, job, optimizer, _keys(job, rows, step))
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step}: lower the rate; {checkpoint} is the last good state")
        if (step + 1) % 20 == 0:
            left = (time.monotonic() - started) / (step + 1 - first) * (job.steps - step - 1)
            tell(json.dumps({"step": step + 1, "of": job.steps, "loss": loss, "seconds_left": round(left)}))
        if (step + 1) % job.save_every == 0 or step + 1 == job.steps:
            state = {"student": student.visual.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            write_whole(checkpoint, lambda partial, state=state: torch.save(state, partial))  # type: ignore[misc]
    return student.visual


def train_step(context: Context, job: Job, optimizer: torch.optim.Optimizer, keys: Tensor) -> float:
    """Attack the batch, then take one optimiser step on the mean loss; return that loss."""
    threat = Threat("Linf", job.eps)
    adversarial = inner_attack(context, job.defense.inner, threat, keys)
    loss = job.defense.loss(context, adversarial).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def inner_attack(context: Context, inner: InnerAttack, threat: Threat, keys: Tensor) -> Tensor:
    """Return adversarial pictures (B, 3, H, W) by signed gradient ascent of the summed per-sample loss.

    Weights get no gradient here.
    """
    eps = float(threat.eps)
    start = (randomness.uniform(keys, 0, context.images.shape[1:]) * 2 - 1) * eps
    adversarial = (context.images + start).clamp(0, 1)
    direction = torch.zeros_like(start)
    for _ in range(inner.steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = inner.loss(context, adversarial).sum()
        (gradient,) = torch.autograd.grad(loss, adversarial)
        direction = (inner.momentum * direction + gradient.sign()).sign()
        moved = adversarial.detach() + float(inner.step_size) * eps * direction
        adversarial = project(threat, context.images, moved)
    return adversarial.detach()


def _encoder(model: Model) -> ImageEncoder:
    visual = copy.deepcopy(model.network.get_submodule("visual")).requires_grad_(True)
    # Batch statistics would couple the samples of a batch, in the attack too: they stay those of pre-training.
    return ImageEncoder(visual, model.architecture).eval()


def _optimizer(student: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    parameters = list(student.parameters())
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=schedule.weight_decay)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=schedule.weight_decay)
    raise UserError(f"unknown optimizer {schedule.optimizer!r}: it is one of {', '.join(_OPTIMIZERS)}")


def _set_rate(optimizer: torch.optim.Optimizer, job: Job, step: int) -> None:
    warm = min(1.0, (step + 1) / max(1, job.schedule.warmup))
    for group in optimizer.param_groups:
        group["lr"] = job.schedule.rate * warm * 0.5 * (1 + math.cos(math.pi * step / job.steps))


def _resume(student: ImageEncoder, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    student.visual.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _pictures(job: Job) -> tuple[Tensor, Tensor]:
    source = job.dataset.open()
    chunks = [range(start, min(start + 512, job.pictures)) for start in range(0, job.pictures, 512)]
    return torch.cat([source.read(chunk) for chunk in chunks]), torch.tensor(source.labels[: job.pictures])


def _rows(job: Job, step: int) -> Tensor:
    batch = job.schedule.batch
    epoch, index = divmod(step, job.pictures // batch)
    order = torch.randperm(job.pictures, generator=torch.Generator().manual_seed(job.seed * 10_000 + epoch))
    return order[index * batch : (index + 1) * batch]


def _keys(job: Job, rows: Tensor, step: int) -> Tensor:
    ids = [f"{step} {row}" for row in rows.tolist()]
    return randomness.sample_keys(job.seed, "inner attack", ids)
