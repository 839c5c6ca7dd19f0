"""Sweeps: train a defense with several combinations of settings, and compare them on held-out training images.

The learning rates of the models in this package were chosen by sweeps. Sweeps never use evaluation datasets.
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
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.models.classifier import ZeroShotClassifier
from robustbench_vlm.models.fast_conv import with_fast_pixel_gradients
from robustbench_vlm.models.fast_resnet import folded
from robustbench_vlm.models.image_encoder import ImageEncoder
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.training.data import TrainingImages
from robustbench_vlm.training.finetune import Runtime, finetune
from robustbench_vlm.training.job import Job
from robustbench_vlm.training.log import Diverged
from robustbench_vlm.training.request import TrainingRequest, make_sweep_job, vary, with_images

ATTACK = "pgd-10"
VERSION = 1
"""Version of the measurement of accuracies. Increase it if a change of the code can change a trial's accuracies."""
_BATCH_SIZE = 128

Measure = Callable[[nn.Module], tuple[float, float]]
"""Type of a function from an image encoder to its clean and robust accuracy on the held-out images."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep and its accuracies on the held-out images."""

    settings: Mapping[str, float]
    """The settings that differ between the trainings of the sweep, with their values in this training."""
    clean: float | None
    """The clean accuracy in [0, 1]. It is None if the training diverged."""
    robust: float | None
    """The accuracy under the attack `ATTACK` at the training eps, in [0, 1]. It is None if the training diverged."""
    seconds: float
    """The duration of the training in seconds. For a resumed training, only the time since the last start counts."""

    @property
    def score(self) -> float | None:
        """The mean of clean and robust accuracy. None if the training diverged."""
        return None if self.clean is None or self.robust is None else (self.clean + self.robust) / 2

    def standard_error(self, num_images: int) -> float:
        """Return the standard error of the score, measured on `num_images` images.

        The score of one image is 0, 1/2 or 1: half a point if it is classified correctly, and half if it is robust.
        """
        clean, robust = self.clean or 0.0, self.robust or 0.0
        return math.sqrt(((clean - robust) / 4 + robust - ((clean + robust) / 2) ** 2) / num_images)


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep: one trial for each combination of settings."""

    job: Job
    """The training that the sweep repeats with each combination of settings."""
    trials: tuple[Trial, ...]
    """One trial per combination of settings. The values of the last setting change fastest."""
    held_out: int
    """The number of held-out images."""

    @property
    def best(self) -> Trial | None:
        """The first trial whose score is within one standard error of the highest score. None if all trials diverged.

        This is the one-standard-error rule (Breiman et al., 1984): scores that are so close cannot be distinguished. If
        learning rates are listed from low to high, the rule chooses the smallest of the learning rates with such
        scores, which changes the base model least.
        """
        scores = {number: trial.score for number, trial in enumerate(self.trials) if trial.score is not None}
        if not scores:
            return None
        highest = max(scores, key=lambda number: scores[number])
        least = scores[highest] - self.trials[highest].standard_error(self.held_out)
        return self.trials[next(number for number, score in scores.items() if score >= least)]


def run_sweep(
    request: TrainingRequest,
    grid: Mapping[str, Sequence[float]],
    train_fraction: Fraction,
    runtime: Runtime,
    on_progress: OnProgress,
) -> Sweep:
    """Train a defense with every combination of the settings in `grid`. Measure each trained model on held-out images.

    The trainings use the fraction `train_fraction` of the images. Trials with results in `runtime.folder` are not
    repeated. Raises UserError before the first training for unknown settings, for a `train_fraction` outside (0, 1],
    and if too few images are left to hold out.
    """
    if not grid or not 0 < train_fraction <= 1:
        raise UserError(
            "a sweep needs at least one setting and a fraction of the images above 0 and at most 1, got"
            f" {len(grid)} settings and {train_fraction}: give --grid NAME=N,N,... and --train-fraction P"
        )
    whole, held_out = make_sweep_job(request)
    job = with_images(whole, request, whole.images.slice(0, max(1, int(len(whole.images) * train_fraction))))
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    jobs = [vary(job, request, settings) for settings in combinations]
    for change in dict.fromkeys(change for each in jobs for change in each.changes):
        runtime.on_note(change)
    measure = _measurement(job, held_out)
    attack = [stage.identity for stage in load_attack(ATTACK).stages]
    trials = []
    for number, (settings, varied) in enumerate(zip(combinations, jobs, strict=True), 1):
        name = ",".join(f"{key}={value:g}" for key, value in settings.items())
        trial_runtime = dataclasses.replace(runtime, folder=runtime.folder / f"{name}-{varied.identity[:8]}")
        on_trial_progress = _labelled(on_progress, f"{name}, {number} of {len(jobs)}")
        identity = fingerprint([VERSION, varied.identity, held_out.digest, attack])
        trials.append(_trial(varied, identity, settings, trial_runtime, measure, on_trial_progress))
    if runtime.processes.is_main:
        write_whole(runtime.folder / "sweep.csv", lambda partial: _write(partial, trials))
    return Sweep(job, tuple(trials), len(held_out))


def _labelled(on_progress: OnProgress, label: str) -> OnProgress:
    def labelled(progress: Progress) -> None:
        text = f"{label}: {progress.label}" if progress.label else label
        on_progress(dataclasses.replace(progress, label=text))

    return labelled


def _trial(
    job: Job, identity: str, settings: Mapping[str, float], runtime: Runtime, measure: Measure, on_progress: OnProgress
) -> Trial:
    file = runtime.folder / "trial.json"
    if trial := _read_trial(file, identity):
        return trial
    started = time.monotonic()
    clean: float | None
    robust: float | None
    try:
        clean, robust = measure(finetune(job, runtime, on_progress)[0])
    except Diverged:
        # A diverged training is a result of the sweep, not an error.
        clean = robust = None
    trial = Trial(settings, clean, robust, round(time.monotonic() - started, 1))
    # Every process checks whether the file exists. The main process must not write the file before all processes have
    # checked.
    runtime.processes.wait()
    if runtime.processes.is_main:
        write_text(file, json.dumps({**dataclasses.asdict(trial), "identity": identity}))
    return trial


def _read_trial(file: Path, identity: str) -> Trial | None:
    """Return the trial that a file contains.

    Returns None if the file does not exist or belongs to another training or measurement.
    """
    if not file.exists():
        return None
    advice = "remove the file and repeat the command"
    values = read_json(file, "the trial", advice=advice)
    if isinstance(values, dict) and values.pop("identity", "") != identity:
        return None
    return validate(Trial, values, f"the trial {file}", advice=advice)


def _measurement(job: Job, held_out: TrainingImages) -> Measure:
    images = held_out.read(range(len(held_out))).to(torch.float32) / 255
    keys = sample_keys(job.seed, job.dataset.name, held_out.ids)
    text_features = job.model.text_features(job.dataset.prompts)

    def measure(visual: nn.Module) -> tuple[float, float]:
        device = next(visual.parameters()).device
        labels = held_out.labels.to(device)
        num_classes = torch.full_like(labels, len(job.dataset.classes))
        batch = Batch(images.to(device), labels, keys.to(device), Threat("Linf", job.eps), num_classes)
        with torch.no_grad():
            encoder = ImageEncoder(with_fast_pixel_gradients(folded(visual)), job.model.architecture)
        classifier = ZeroShotClassifier(encoder, text_features, job.model.scale).eval().requires_grad_(False)
        with arithmetic():
            verdict = attack_samples(classifier.to(device), batch, load_attack(ATTACK), batch_size=_BATCH_SIZE)
        clean = (verdict.clean_prediction == labels).float().mean().item()
        return clean, verdict.robust.float().mean().item()

    return measure


def _write(path: Path, trials: Sequence[Trial]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*trials[0].settings, "clean", "robust", "seconds"])
        writer.writerows([*trial.settings.values(), trial.clean, trial.robust, trial.seconds] for trial in trials)
