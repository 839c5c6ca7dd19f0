"""Adversarial fine-tuning of the image encoder: the training loop of all defenses, for one or several processes.

Random numbers depend only on the seed, the sample and the step. Therefore a training that is killed and resumed gives
the same weights as a training that is not killed. On a CPU the weights are bitwise equal. Several processes share each
batch and add up their gradients. Except for rounding, the losses do not depend on the number of processes.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
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
from robustbench_vlm.models.weights import copy_weights, save_weights, split_encoders
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.checkpoint import Checkpoint
from robustbench_vlm.training.data import read_ahead, shuffled
from robustbench_vlm.training.distributed import Processes
from robustbench_vlm.training.inner_attack import inner_attack
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Recorder, plot_log, read_log
from robustbench_vlm.training.optim import lr_at, make_optimizer, set_lr, take_step
from robustbench_vlm.training.request import TrainingRequest, make_job


def _ignore_note(text: str) -> None:
    pass


@dataclass(frozen=True)
class Runtime:
    """The folder, processes and checkpoint interval of a training.

    Except for rounding, the trained weights do not depend on these settings.
    """

    folder: Path
    """The folder of the checkpoint, the log and the trained weights."""
    processes: Processes = field(default_factory=Processes)
    save_every: int = 200
    """Number of steps from one checkpoint to the next."""
    on_note: Callable[[str], None] = _ignore_note
    """A function that is called before the training, once for each sentence about a changed setting (`Job.changes`)."""


def train_defense(
    request: TrainingRequest, runtime: Runtime, on_progress: OnProgress, *, resume: bool | None = None
) -> Path | None:
    """Fine-tune a base model with a defense and write its card. Return the path of the card.

    Only the main process writes the card. The other processes return None. If `resume` is True, the training continues
    from the checkpoint in the folder. If it is False, the training starts from the beginning. If it is None, the
    training continues if the folder has a checkpoint. Raises UserError for unknown names and settings, and if `resume`
    is True but the folder does not contain a checkpoint.
    """
    checkpoint = runtime.folder / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise UserError(
            f"found no checkpoint to resume in {runtime.folder}: train without --resume, or give its folder by --out"
        )
    with explained(runtime.folder):
        runtime.folder.mkdir(parents=True, exist_ok=True)
    job = make_job(request)
    if resume is False and runtime.processes.is_main:
        with explained(checkpoint):
            checkpoint.unlink(missing_ok=True)
    for change in job.changes:
        runtime.on_note(change)
    runtime.processes.wait()
    visual, seconds = finetune(job, runtime, on_progress)
    if not runtime.processes.is_main:
        return None
    plot_log(read_log(runtime.folder / "log.csv"), runtime.folder / "curves.png", job.defense.name)
    return _write_card(request, job, visual.state_dict(), runtime.folder, round(seconds, 1))


def finetune(job: Job, runtime: Runtime, on_progress: OnProgress) -> tuple[nn.Module, float]:
    """Train the image encoder of a job. Return the trained image encoder and the duration of the training in seconds.

    The training continues from the checkpoint in the folder, if there is one. Raises Diverged if the loss or a weight
    is not finite. In this case, the last checkpoint is kept. Raises UserError if there are more processes than images
    in a batch, or if the processes have different checkpoints or settings.
    """
    processes = runtime.processes
    checkpoint = Checkpoint(runtime.folder / "checkpoint.pt", job.identity)
    log_file = runtime.folder / "log.csv" if processes.is_main else None
    recorder = Recorder(checkpoint, job.steps, runtime.save_every, log_file, on_progress)
    with arithmetic():
        student = make_student(job).to(processes.device)
        optimizer = make_optimizer(student, job.schedule)
        first = recorder.begin(student.visual, optimizer)
        _check_processes(job, processes, first)
        for step, context in enumerate(_contexts(job, processes, student, first), first):
            set_lr(optimizer, lr_at(job.schedule, job.steps, step))
            loss, accuracies = train_step(job, context, optimizer, processes, measure=recorder.logs(step))
            recorder.record(step, loss, accuracies)
        processes.wait()
    return student.visual, recorder.seconds


def make_student(job: Job) -> ImageEncoder:
    """Return a copy of the image encoder that a job trains, in eval mode and with all weights trainable."""
    visual = copy.deepcopy(job.model.network.get_submodule("visual")).requires_grad_(True)
    # The encoder is in eval mode. In train mode, batch norm would make the features of an image depend on the other
    # images of the batch.
    return ImageEncoder(visual, job.model.architecture).eval()


def train_step(
    job: Job, context: LossContext, optimizer: torch.optim.Optimizer, processes: Processes, *, measure: bool = False
) -> tuple[float, dict[str, float]]:
    """Attack a batch and take one optimizer step on the mean loss. Return the loss and the accuracies of the batch.

    If `measure` is true, two more forward passes measure the clean and the robust accuracy of the batch. The returned
    dict has these accuracies, in [0, 1], with the keys "clean" and "robust". If `measure` is false, it is empty. If the
    loss is not finite, no optimizer step is taken.
    """
    adversarial = inner_attack(context, job.defense.inner, Threat("Linf", job.eps))
    correct = [_num_correct(context, images) for images in (context.images, adversarial)] if measure else []
    batch_size = job.schedule.batch_size
    loss = job.defense.loss(_in_precision(job, context), adversarial).sum() / batch_size
    optimizer.zero_grad()
    loss.backward()
    sums = torch.tensor([loss.item(), *correct], dtype=torch.float64, device=loss.device)
    total, *correct = processes.total(sums).tolist()
    if math.isfinite(total):
        processes.add_gradients(optimizer)
        if not take_step(optimizer, job.schedule):
            total = math.inf
    return total, {name: count / batch_size for name, count in zip(("clean", "robust"), correct, strict=False)}


def _check_processes(job: Job, processes: Processes, first: int) -> None:
    if processes.count > job.schedule.batch_size:
        raise UserError(
            f"{processes.count} processes cannot share a batch of {job.schedule.batch_size} images: start fewer"
            " processes, or give a larger batch by --set batch_size=N"
        )
    if not (processes.agree(first) and processes.agree(int(job.identity[:15], 16))):
        raise UserError(
            "the processes have different checkpoints or settings: start all of them with the same command and the same"
            " --out on a shared disk"
        )


def _contexts(job: Job, processes: Processes, student: ImageEncoder, first: int) -> Iterator[LossContext]:
    """Yield a `LossContext` (the inputs of the loss function) for each step. The first of these steps is `first`.

    The student (the image encoder that is trained) has the weights from before the step.
    """
    if first == job.steps:
        return
    model = dataclasses.replace(job.model, network=copy.deepcopy(job.model.network).to(processes.device))
    # An image encoder in float64 is trained in float64. Tests use float64 to compare trainings with little rounding
    # error.
    dtype = next(student.parameters()).dtype
    teacher = model.encoder.to(processes.device)
    text_features = model.text_features(job.dataset.prompts).to(dtype)
    batches = (processes.share(_rows(job, step)) for step in range(first, job.steps))
    for step, (rows, images) in enumerate(read_ahead(batches, job.images.read), first):
        clean = images.to(processes.device).to(dtype) / 255
        # Batch norm is folded into the convolutions once per step. This makes all passes of the step faster.
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


def _rows(job: Job, step: int) -> Tensor:
    """Return the positions of the images of a step, int64 (batch_size,). Each epoch has a different order of images."""
    epoch, index = divmod(step, job.epoch_steps)
    batch_size = job.schedule.batch_size
    order = shuffled(len(job.images), job.seed * 10_000 + epoch)
    return order[index * batch_size : (index + 1) * batch_size]


def _keys(job: Job, rows: Tensor, step: int) -> Tensor:
    return randomness.sample_keys(job.seed, "inner attack", [f"{step} {row}" for row in rows.tolist()])


def _without_gradient(encoder: nn.Module, images: Tensor) -> Tensor:
    # The inner attack may call this function under autocast (half precision). Autocast is turned off here, because the
    # training pass uses the same features and needs float32.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        features: Tensor = encoder(images)
    return features


def _in_precision(job: Job, context: LossContext) -> LossContext:
    """Return a copy of the context in which the trained image encoder runs in the job's precision.

    Features and losses are still float32.
    """
    if job.precision == "float32":
        return context
    device, low = context.images.device.type, getattr(torch, job.precision)

    def student(images: Tensor) -> Tensor:
        with torch.autocast(device, low):
            return context.student(images).float()

    def student_dense(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device, low):
            features, dense = context.student_dense(images)
        return features.float(), dense.float()

    return dataclasses.replace(context, student=student, student_dense=student_dense)


def _num_correct(context: LossContext, images: Tensor) -> float:
    with torch.no_grad():
        predictions = logits(context.student(images), context.text_features, 1.0).argmax(dim=1)
    return float((predictions == context.labels).sum())


def _write_card(
    request: TrainingRequest, job: Job, weights: Mapping[str, Tensor], folder: Path, seconds: float
) -> Path:
    track: Track = TRACKS.load(request.track)
    parent = job.model.card
    assert parent
    card = ModelCard(
        name=request.name,
        architecture=parent.architecture,
        image=save_weights(weights, folder / f"{request.name}.safetensors", track.weights_dtype),
        text=_save_text(job, folder),
        defense=job.defense.name,
        training={"track": track.name, **plain(job.account), "seconds": seconds, "fingerprint": job.identity},
        paper=job.defense.paper,
        licence=parent.licence,
        notes="; ".join([f"fidelity: {job.defense.fidelity}", *job.changes]),
        mean=parent.mean,
        std=parent.std,
    )
    write_card(card, folder / f"{request.name}.json")
    return folder / f"{request.name}.json"


def _save_text(job: Job, folder: Path) -> Weights:
    card = job.model.card
    if card and card.text and card.text.is_bundled:
        return copy_weights(Path(card.folder) / card.text.file, folder)
    return save_weights(split_encoders(job.model.network)[1], folder / "text.safetensors")
