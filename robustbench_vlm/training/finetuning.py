"""Adversarial fine-tuning of the image tower: one loop for every defense, on one process or several.

Random numbers belong to the sample and the step, and processes share a batch and add their gradients up: a training
that was killed and resumed ends in the same weights, and one on two processes follows the curve of one on one.
"""

import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm import randomness
from robustbench_vlm.defenses.defense import Context, logits
from robustbench_vlm.errors import UserError
from robustbench_vlm.models.clip import ImageEncoder
from robustbench_vlm.models.folding import folded
from robustbench_vlm.threats import Threat
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.inner import inner_attack
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Log, Row
from robustbench_vlm.training.optimisation import make_optimizer, rate_at
from robustbench_vlm.training.pictures import Read, in_hashed_order, read_ahead, reader
from robustbench_vlm.training.processes import Processes

LOG_EVERY = 20
"""Steps from one row of the log to the next; each costs two forward passes more."""


@dataclass(frozen=True)
class Place:
    """Where and how a training runs: nothing that decides the weights, but for rounding."""

    folder: Path
    """Of the checkpoint and the log."""
    processes: Processes = field(default_factory=Processes)
    save_every: int = 200
    """Steps from one checkpoint to the next."""
    read: Read | None = None
    """How to read the pictures, where a caller holds them already."""


def finetune(job: Job, place: Place, tell: Callable[[Row, int, float], object]) -> nn.Module:
    """Train and return the image tower; a run that was killed goes on from the checkpoint in its folder.

    `tell` takes a row of the log, the number of steps, and the seconds left. Raises UserError when the loss or a weight
    is no longer finite; the last good checkpoint stays.
    """
    processes = place.processes
    student = tower_of(job).to(processes.device)
    optimizer = make_optimizer(student, job.schedule)
    checkpoint = Checkpoint(place.folder / "checkpoint.pt", job.identity)
    first, before = checkpoint.load(student.visual, optimizer)
    log = Log(place.folder / "log.csv", first) if processes.is_main else None
    started = time.monotonic() - before
    for step, context in enumerate(_contexts(job, place, student, first), first):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(job.schedule, job.steps, step)
        shown = (step + 1) % LOG_EVERY == 0 or step + 1 == job.steps
        loss, clean, robust = train_step(job, context, optimizer, processes, shown=shown)
        if not math.isfinite(loss):
            raise UserError(_diverged(f"the loss is {loss}", step, checkpoint))
        seconds = time.monotonic() - started
        if shown and log:
            row = Row(step + 1, loss, clean, robust, optimizer.param_groups[0]["lr"], round(seconds, 1))
            log.add(row)
            tell(row, job.steps, (seconds - before) / (step + 1 - first) * (job.steps - step - 1))
        if (step + 1) % place.save_every == 0 or step + 1 == job.steps:
            if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
                raise UserError(_diverged("a weight is no longer finite", step, checkpoint))
            if processes.is_main:
                checkpoint.save(student.visual, optimizer, step + 1, seconds)
    processes.wait()
    return student.visual


def train_step(
    job: Job, context: Context, optimizer: torch.optim.Optimizer, processes: Processes, *, shown: bool = False
) -> tuple[float, float, float]:
    """Attack the batch, then take one step on the mean loss; return loss, clean and robust accuracy of the batch.

    The accuracies cost two forward passes more and are NaN unless `shown`. A loss that is not finite moves no weight.
    """
    adversarial = inner_attack(context, job.defense.inner, Threat("Linf", job.eps))
    clean, robust = (_right(context, context.images), _right(context, adversarial)) if shown else (math.nan, math.nan)
    loss = job.defense.loss(_in_precision(job, context), adversarial).sum() / job.schedule.batch
    optimizer.zero_grad()
    loss.backward()
    sums = processes.total(torch.tensor([loss.item(), clean, robust], dtype=torch.float64, device=loss.device)).tolist()
    if math.isfinite(sums[0]):
        processes.add_gradients(optimizer)
        optimizer.step()
    return sums[0], sums[1] / job.schedule.batch, sums[2] / job.schedule.batch


def _contexts(job: Job, place: Place, student: ImageEncoder, first: int) -> Iterator[Context]:
    """Give the context of every step from `first` on, with the student as it is when the step begins."""
    source, processes = job.dataset.open(), place.processes
    indices = in_hashed_order(source.ids)[: job.pictures]
    read = place.read or reader(source, indices)
    labels = torch.tensor([source.labels[index] for index in indices])
    model = dataclasses.replace(job.model, network=copy.deepcopy(job.model.network).to(processes.device))
    # A tower in float64 trains in it: what differs then is no rounding.
    dtype = next(student.parameters()).dtype
    teacher = model.encoder.to(processes.device)
    text_features = model.text_features(job.dataset.prompts).to(dtype)
    batches = (processes.share(_rows(job, step)) for step in range(first, job.steps))
    for step, (rows, images) in enumerate(read_ahead(batches, read), first):
        clean = images.to(processes.device).to(dtype) / 255
        # The short form of the weights as they are now: all passes of a step share it.
        current = ImageEncoder(folded(student.visual), job.model.architecture).to(processes.device).eval()
        yield Context(
            images=clean,
            labels=labels[rows].to(processes.device),
            keys=_keys(job, rows, step).to(processes.device),
            student=current,
            teacher=teacher,
            teacher_clean=functools.cache(lambda clean=clean: _without_gradient(teacher, clean)),
            text_features=text_features,
            settings=job.defense.settings,
            student_dense=current.dense,
            teacher_dense=teacher.dense,
            total=processes.total_of_parts,
        )


def _without_gradient(tower: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = tower(images)
    return features


def _in_precision(job: Job, context: Context) -> Context:
    """Return the context whose student runs in the job's precision; embeddings, and so losses, stay float32."""
    if job.precision == "float32":
        return context
    kind, low = context.images.device.type, getattr(torch, job.precision)

    def student(images: Tensor) -> Tensor:
        with torch.autocast(kind, low):
            return context.student(images).float()

    def student_dense(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(kind, low):
            features, places = context.student_dense(images)
        return features.float(), places.float()

    return dataclasses.replace(context, student=student, student_dense=student_dense)


def _right(context: Context, images: Tensor) -> float:
    with torch.no_grad():
        predictions = logits(context.student(images), context.text_features, 1.0).argmax(dim=1)
    return float((predictions == context.labels).sum())


def tower_of(job: Job) -> ImageEncoder:
    """Return a copy of the image tower that a job starts from, in eval mode, with all its weights to be trained."""
    visual = copy.deepcopy(job.model.network.get_submodule("visual")).requires_grad_(True)
    # Batch statistics would couple the samples of a batch, in the attack too: they stay those of pre-training.
    return ImageEncoder(visual, job.model.architecture).eval()


def _rows(job: Job, step: int) -> Tensor:
    epoch, index = divmod(step, job.epoch_steps)
    batch = job.schedule.batch
    return _order(job.pictures, job.seed, epoch)[index * batch : (index + 1) * batch]


@functools.lru_cache(maxsize=2)
def _order(pictures: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(pictures, generator=torch.Generator().manual_seed(seed * 10_000 + epoch))


def _keys(job: Job, rows: Tensor, step: int) -> Tensor:
    return randomness.sample_keys(job.seed, "inner attack", [f"{step} {row}" for row in rows.tolist()])


def _diverged(what: str, step: int, checkpoint: Checkpoint) -> str:
    kept = (
        f"{checkpoint.path} holds the last good state" if checkpoint.path.exists() else "no checkpoint was written yet"
    )
    return f"{what} after step {step}: lower the rate by --set rate=...; {kept}"
