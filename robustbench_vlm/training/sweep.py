"""Sweeps: a defense trained once for each combination of settings, and measured on held-out training pictures.

The search of a learning rate is one; evaluation sets are never looked at.
"""

import csv
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.stage import Batch
from robustbench_vlm.attacks.worst_case import attack_samples
from robustbench_vlm.errors import UserError
from robustbench_vlm.files import write_text, write_whole
from robustbench_vlm.models.clip import ImageEncoder, ZeroShotClassifier
from robustbench_vlm.models.convolution import quick_at_pixels
from robustbench_vlm.models.folding import folded
from robustbench_vlm.randomness import sample_keys
from robustbench_vlm.threats import Threat
from robustbench_vlm.training.finetuning import Place, finetune
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.order import Order, make_job
from robustbench_vlm.training.pictures import in_hashed_order, reader

HELD_OUT = 1024
"""Pictures of the fine-tuning set that no training sees; they follow the track's training pictures."""
ATTACK = "pgd-10"
_AT_ONCE = 128


@dataclass(frozen=True)
class Trial:
    """One training of a sweep; accuracies on the held-out pictures in [0, 1], None where the training diverged."""

    settings: Mapping[str, float]
    clean: float | None
    robust: float | None
    """Under `ATTACK` at the training eps."""
    seconds: float

    @property
    def score(self) -> float | None:
        """The mean of clean and robust accuracy."""
        return None if self.clean is None or self.robust is None else (self.clean + self.robust) / 2

    def standard_error(self, pictures: int) -> float:
        """Return the standard error of the score over so many pictures, each of which scores 0, 1/2 or 1."""
        clean, robust = self.clean or 0.0, self.robust or 0.0
        return math.sqrt(((clean - robust) / 4 + robust - ((clean + robust) / 2) ** 2) / pictures)


@dataclass(frozen=True)
class Sweep:
    """A job, its trials in the order of their settings, and on how many pictures each was measured."""

    job: Job
    trials: tuple[Trial, ...]
    held_out: int

    @property
    def best(self) -> Trial | None:
        """The first trial whose score is within a standard error of the highest, None where all diverged.

        The rule of one standard error (Breiman et al., 1984): of values that cannot be told apart the first one named
        is taken, such as the smallest learning rate, which stays nearest to the model that a training starts from.
        """
        scores = {number: trial.score for number, trial in enumerate(self.trials) if trial.score is not None}
        if not scores:
            return None
        highest = max(scores, key=lambda number: scores[number])
        least = scores[highest] - self.trials[highest].standard_error(self.held_out)
        return self.trials[next(number for number, score in scores.items() if score >= least)]


def run_sweep(
    order: Order, over: Mapping[str, Sequence[float]], share: Fraction, place: Place, tell: Callable[..., object]
) -> Sweep:
    """Train every combination of the settings `over` on a share of the pictures, and measure it on held-out ones.

    Trials that are on disk already are not trained again. Raises UserError for unknown settings, a share outside
    (0, 1], and pictures too few to hold some out.
    """
    if not over or not 0 < share <= 1:
        raise UserError("a sweep takes one or more --over NAME=N,N,... and a --share above 0 and up to 1")
    job, _ = make_job(order)
    source, held_out = job.dataset.open(), _held_out(job)
    indices = in_hashed_order(source.ids)
    trained = dataclasses.replace(order, pictures=max(job.schedule.batch, int(job.pictures * share)))
    read = reader(source, indices[: trained.pictures])
    examination = _examination(job, indices[job.pictures : job.pictures + held_out])
    trials = []
    combinations = list(itertools.product(*over.values()))
    for number, values in enumerate(combinations):
        settings = dict(zip(over, values, strict=True))
        part = dataclasses.replace(trained, settings={**order.settings, **settings})
        name = ",".join(f"{key}={value:g}" for key, value in settings.items())
        here = dataclasses.replace(place, folder=place.folder / name, read=read)
        said = f"{name}, {number + 1} of {len(combinations)}"
        trials.append(_trial(part, settings, here, examination, lambda *told, said=said: tell(*told, said)))
    if place.processes.is_main:
        write_whole(place.folder / "sweep.csv", lambda partial: _write(partial, trials))
    return Sweep(dataclasses.replace(job, pictures=trained.pictures or 0), tuple(trials), held_out)


def _trial(
    order: Order,
    settings: Mapping[str, float],
    place: Place,
    examination: Callable[[nn.Module], tuple[float, float]],
    tell: Callable[..., object],
) -> Trial:
    job, _ = make_job(order)
    file = place.folder / "trial.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known.pop("identity") == job.identity:
            return Trial(**known)
    started = time.monotonic()
    try:
        visual = finetune(job, place, lambda row, of, left: tell(row.step, of, left))
        accuracies: tuple[float | None, float | None] = examination(visual)
    except UserError:
        # A rate at which the loss diverges is a finding and not the end of a sweep.
        accuracies = (None, None)
    trial = Trial(settings, *accuracies, round(time.monotonic() - started, 1))
    if place.processes.is_main:
        write_text(file, json.dumps({"identity": job.identity, **dataclasses.asdict(trial)}))
    return trial


def _held_out(job: Job) -> int:
    spare = min(HELD_OUT, len(job.dataset.open().ids) - job.pictures)
    if spare < 1:
        raise UserError(
            f"all pictures of {job.dataset.name!r} are for training: leave some for the comparison by a smaller"
            " --pictures"
        )
    return spare


def _examination(job: Job, indices: Sequence[int]) -> Callable[[nn.Module], tuple[float, float]]:
    """Return what measures a tower's clean and robust accuracy on the pictures at `indices`."""
    source = job.dataset.open()
    images = reader(source, indices)(range(len(indices))).to(torch.float32) / 255
    labels = torch.tensor([source.labels[index] for index in indices])
    keys = sample_keys(job.seed, job.dataset.name, [source.ids[index] for index in indices])
    text_features = job.model.text_features(job.dataset.prompts)
    threat = Threat("Linf", job.eps)

    def examine(visual: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            encoder = ImageEncoder(quick_at_pixels(folded(visual)), job.model.architecture)
        device = next(visual.parameters()).device
        classifier = ZeroShotClassifier(encoder, text_features.to(device), job.model.scale).eval().requires_grad_(False)
        batch = Batch(images, labels, keys, threat, torch.full_like(labels, len(job.dataset.classes)))
        verdict = attack_samples(classifier.to(device), _on(batch, device), load_attack(ATTACK), slots=_AT_ONCE)
        clean = (verdict.clean_prediction.cpu() == labels).float().mean().item()
        return clean, verdict.robust.float().mean().item()

    return examine


def _on(batch: Batch, device: torch.device) -> Batch:
    moved = {name: getattr(batch, name).to(device) for name in ("images", "labels", "keys", "num_classes")}
    return dataclasses.replace(batch, **moved)


def _write(path: Path, trials: Sequence[Trial]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*trials[0].settings, "clean", "robust", "seconds"])
        writer.writerows([*trial.settings.values(), trial.clean, trial.robust, trial.seconds] for trial in trials)
