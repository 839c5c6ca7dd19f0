"""Adversarial fine-tuning of the image tower: one loop for every defense, on one process or several.

Random numbers belong to the sample and the step, and processes share a batch and add their gradients up: a training
that was killed and resumed ends in the same weights, bit for bit on a CPU, and one on two processes follows the curve
of one on one.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.progress import OnProgress
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.defenses.base import LossContext, logits
from robustbench_vlm.models.card import ModelCard, Weights, write_card
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.models.weights import copy_weights, save_weights, split_towers
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.data import read_ahead
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.inner_attack import inner_attack
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Recorder, plot_log, read_log
from robustbench_vlm.training.optim import make_optimizer, rate_at, set_rate
from robustbench_vlm.training.request import TrainingRequest, make_job


@dataclass(frozen=True)
class Runtime:
    """Where and how a training runs: nothing that decides the weights, but for rounding."""

    folder: Path
    """Of the checkpoint and the log."""
    processes: Processes = field(default_factory=Processes)
    save_every: int = 200
    """Steps from one checkpoint to the next."""


def train_defense(
    request: TrainingRequest, runtime: Runtime, on_progress: OnProgress, *, resume: bool | None = None
) -> Path | None:
    """Fine-tune a base model by a defense's recipe into a folder; return the new card's path, None on a helper process.

    A training that was stopped goes on: `resume` asks for that, False forbids it, None allows it. Raises UserError for
    unknown names and settings, and where there is nothing to resume.
    """
    checkpoint = runtime.folder / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise UserError(
            f"there is nothing to go on from in {runtime.folder}: train without --resume, or name its folder"
        )
    with explained(runtime.folder):
        runtime.folder.mkdir(parents=True, exist_ok=True)
    job = make_job(request)
    if resume is False and runtime.processes.is_main:
        checkpoint.unlink(missing_ok=True)
    runtime.processes.wait()
    visual, seconds = finetune(job, runtime, on_progress)
    if not runtime.processes.is_main:
        return None
    plot_log(read_log(runtime.folder / "log.csv"), runtime.folder / "curves.png", job.defense.name)
    return _write_card(request, job, visual.state_dict(), runtime.folder, round(seconds, 1))


def finetune(job: Job, runtime: Runtime, on_progress: OnProgress) -> tuple[nn.Module, float]:
    """Train and return the image tower and the seconds it took; goes on from the checkpoint in the folder.

    Raises Diverged when the loss or a weight is no longer finite; the last good checkpoint stays. Raises UserError
    where processes are more than the rows of a batch, or hold different checkpoints.
    """
    processes = runtime.processes
    checkpoint = Checkpoint(runtime.folder / "checkpoint.pt", job.identity)
    log_file = runtime.folder / "log.csv" if processes.is_main else None
    recorder = Recorder(checkpoint, job.steps, runtime.save_every, log_file, on_progress)
    with arithmetic():
        student = tower_of(job).to(processes.device)
        optimizer = make_optimizer(student, job.schedule)
        first = recorder.begin(student.visual, optimizer)
        _check_processes(job, processes, first)
        for step, context in enumerate(_contexts(job, processes, student, first), first):
            set_rate(optimizer, rate_at(job.schedule, job.steps, step))
            recorder.take(step, *train_step(job, context, optimizer, processes, shown=recorder.shows(step)))
        processes.wait()
    return student.visual, recorder.seconds


def _check_processes(job: Job, processes: Processes, first: int) -> None:
    if processes.count > job.schedule.batch_size:
        raise UserError(
            f"{processes.count} processes cannot share a batch of {job.schedule.batch_size}: start fewer processes, or"
            " give a larger batch by --set batch_size=N"
        )
    if not (processes.agree(first) and processes.agree(int(job.identity[:15], 16))):
        raise UserError(
            "the processes hold different checkpoints or settings: give all of them one --out on a shared disk, and one"
            " command"
        )


def train_step(
    job: Job, context: LossContext, optimizer: torch.optim.Optimizer, processes: Processes, *, shown: bool = False
) -> tuple[float, dict[str, float]]:
    """Attack the batch, then take one step on the mean loss; return that loss and, if `shown`, the batch's accuracies.

    The accuracies, "clean" and "robust", cost two forward passes more. A loss that is not finite moves no weight.
    """
    adversarial = inner_attack(context, job.defense.inner, Threat("Linf", job.eps))
    right = [_right(context, pictures) for pictures in (context.images, adversarial)] if shown else []
    loss = job.defense.loss(_in_precision(job, context), adversarial).sum() / job.schedule.batch_size
    optimizer.zero_grad()
    loss.backward()
    sums = torch.tensor([loss.item(), *right], dtype=torch.float64, device=loss.device)
    total, *right = processes.total(sums).tolist()
    if math.isfinite(total):
        processes.add_gradients(optimizer)
        optimizer.step()
    return total, {
        name: count / job.schedule.batch_size for name, count in zip(("clean", "robust"), right, strict=False)
    }


def _contexts(job: Job, processes: Processes, student: ImageEncoder, first: int) -> Iterator[LossContext]:
    """Give the context of every step from `first` on, with the student as it is when the step begins."""
    if first == job.steps:
        return
    model = dataclasses.replace(job.model, network=copy.deepcopy(job.model.network).to(processes.device))
    # A tower in float64 trains in it: what differs then is no rounding.
    dtype = next(student.parameters()).dtype
    teacher = model.encoder.to(processes.device)
    text_features = model.text_features(job.dataset.prompts).to(dtype)
    batches = (processes.share(_rows(job, step)) for step in range(first, job.steps))
    for step, (rows, images) in enumerate(read_ahead(batches, job.images.read), first):
        clean = images.to(processes.device).to(dtype) / 255
        # The short form of the weights as they are now: all passes of a step share it.
        current = ImageEncoder(folded(student.visual), job.model.architecture).to(processes.device).eval()
        yield LossContext(
            images=clean,
            labels=job.images.labels[rows].to(processes.device),
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


def _in_precision(job: Job, context: LossContext) -> LossContext:
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


def _right(context: LossContext, images: Tensor) -> float:
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
    batch = job.schedule.batch_size
    return _order(len(job.images), job.seed, epoch)[index * batch : (index + 1) * batch]


@functools.lru_cache(maxsize=2)
def _order(pictures: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(pictures, generator=torch.Generator().manual_seed(seed * 10_000 + epoch))


def _keys(job: Job, rows: Tensor, step: int) -> Tensor:
    return randomness.sample_keys(job.seed, "inner attack", [f"{step} {row}" for row in rows.tolist()])


def _write_card(request: TrainingRequest, job: Job, tower: Mapping[str, Tensor], folder: Path, seconds: float) -> Path:
    track: Track = TRACKS.load(request.track)
    parent = job.model.card
    assert parent
    card = ModelCard(
        name=request.name,
        architecture=parent.architecture,
        image=save_weights(tower, folder / f"{request.name}.safetensors", track.stored),
        text=_text(job, folder),
        defense=job.defense.name,
        training={"track": track.name, **plain(job.account), "seconds": seconds, "fingerprint": job.identity},
        paper=job.defense.paper,
        licence=parent.licence,
        notes=f"fidelity: {job.defense.fidelity}",
        mean=parent.mean,
        std=parent.std,
    )
    write_card(card, folder / f"{request.name}.json")
    return folder / f"{request.name}.json"


def _text(job: Job, folder: Path) -> Weights:
    card = job.model.card
    if card and card.text and card.text.is_bundled:
        return copy_weights(Path(card.folder) / card.text.file, folder)
    return save_weights(split_towers(job.model.network)[1], folder / "text.safetensors")
