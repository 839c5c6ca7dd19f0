"""Sweeps: a defense trained once for each combination of settings, and measured on held-out training images.

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
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text, write_whole
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.models.classifier import ZeroShotClassifier
from robustbench_vlm.models.fast_conv import quick_at_pixels
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.training.data import TrainingImages
from robustbench_vlm.training.finetune import Runtime, finetune
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Diverged
from robustbench_vlm.training.request import TrainingRequest, make_sweep_job, vary

ATTACK = "pgd-10"
_AT_ONCE = 128

Examination = Callable[[nn.Module], tuple[float, float]]
"""Measures a tower's clean and robust accuracy on the held-out images."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep; accuracies on the held-out images in [0, 1], None where the training diverged."""

    settings: Mapping[str, float]
    clean: float | None
    robust: float | None
    """Under `ATTACK` at the training eps."""
    seconds: float
    """Of the session that ended it."""

    @property
    def score(self) -> float | None:
        """The mean of clean and robust accuracy."""
        return None if self.clean is None or self.robust is None else (self.clean + self.robust) / 2

    def standard_error(self, num_images: int) -> float:
        """Return the standard error of the score over so many images, each of which scores 0, 1/2 or 1."""
        clean, robust = self.clean or 0.0, self.robust or 0.0
        return math.sqrt(((clean - robust) / 4 + robust - ((clean + robust) / 2) ** 2) / num_images)


@dataclass(frozen=True)
class Sweep:
    """A job, its trials in the order of their settings, and on how many images each was measured."""

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
    request: TrainingRequest,
    over: Mapping[str, Sequence[float]],
    share: Fraction,
    runtime: Runtime,
    on_progress: OnProgress,
) -> Sweep:
    """Train every combination of the settings `over` on a share of the images, and measure it on held-out ones.

    Trials that are on disk already are not trained again. Raises UserError for unknown settings, a share outside
    (0, 1], and images too few to hold some out, before anything is trained.
    """
    if not over or not 0 < share <= 1:
        raise UserError("a sweep takes one or more --grid NAME=N,N,... and a --train-fraction above 0 and up to 1")
    whole, held_out = make_sweep_job(request)
    job = dataclasses.replace(whole, images=whole.images.slice(0, max(1, int(len(whole.images) * share))))
    combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    jobs = [vary(job, request, settings) for settings in combinations]
    examine = _examination(job, held_out)
    trials = []
    for number, (settings, varied) in enumerate(zip(combinations, jobs, strict=True), 1):
        name = ",".join(f"{key}={value:g}" for key, value in settings.items())
        here = dataclasses.replace(runtime, folder=runtime.folder / f"{name}-{varied.identity[:8]}")
        label = f"{name}, {number} of {len(jobs)}"
        trials.append(_trial(varied, settings, here, examine, _labelled(on_progress, label)))
    if runtime.processes.is_main:
        write_whole(runtime.folder / "sweep.csv", lambda partial: _write(partial, trials))
    return Sweep(job, tuple(trials), len(held_out))


def _labelled(on_progress: OnProgress, label: str) -> OnProgress:
    def labelled(progress: Progress) -> None:
        text = f"{label}: {progress.label}" if progress.label else label
        on_progress(dataclasses.replace(progress, label=text))

    return labelled


def _trial(
    job: Job, settings: Mapping[str, float], runtime: Runtime, examine: Examination, on_progress: OnProgress
) -> Trial:
    file = runtime.folder / "trial.json"
    if file.exists():
        return Trial(**json.loads(file.read_text()))
    started = time.monotonic()
    clean: float | None
    robust: float | None
    try:
        clean, robust = examine(finetune(job, runtime, on_progress)[0])
    except Diverged:
        # A rate at which the loss diverges is a finding and not the end of a sweep.
        clean = robust = None
    trial = Trial(settings, clean, robust, round(time.monotonic() - started, 1))
    # Nobody may find the file before all have looked for it.
    runtime.processes.wait()
    if runtime.processes.is_main:
        write_text(file, json.dumps(dataclasses.asdict(trial)))
    return trial


def _examination(job: Job, held_out: TrainingImages) -> Examination:
    images = held_out.read(range(len(held_out))).to(torch.float32) / 255
    keys = sample_keys(job.seed, job.dataset.name, held_out.ids)
    text_features = job.model.text_features(job.dataset.prompts)

    def examine(visual: nn.Module) -> tuple[float, float]:
        device = next(visual.parameters()).device
        labels = held_out.labels.to(device)
        num_classes = torch.full_like(labels, len(job.dataset.classes))
        batch = Batch(images.to(device), labels, keys.to(device), Threat("Linf", job.eps), num_classes)
        with torch.no_grad():
            encoder = ImageEncoder(quick_at_pixels(folded(visual)), job.model.architecture)
        classifier = ZeroShotClassifier(encoder, text_features, job.model.scale).eval().requires_grad_(False)
        with arithmetic():
            verdict = attack_samples(classifier.to(device), batch, load_attack(ATTACK), batch_size=_AT_ONCE)
        clean = (verdict.clean_prediction == labels).float().mean().item()
        return clean, verdict.robust.float().mean().item()

    return examine


def _write(path: Path, trials: Sequence[Trial]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*trials[0].settings, "clean", "robust", "seconds"])
        writer.writerows([*trial.settings.values(), trial.clean, trial.robust, trial.seconds] for trial in trials)
