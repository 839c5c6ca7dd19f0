"""Training requests: the options of `vlmbench train` and `vlmbench sweep`, and functions that make `Job`s from them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import training_folder
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense, Resize, Schedule
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.data import TrainingImages, in_hashed_order
from robustbench_vlm.training.job import Job

HELD_OUT = 1024
"""The largest number of images that a sweep holds out to measure accuracies. A sweep also holds out at most a tenth of
the images.
"""
_LARGEST_WARMUP = Fraction(1, 4)
"""The longest accepted warm-up of a published schedule, as a fraction of the training steps."""
_LARGEST = 1e30
"""The largest accepted value of a setting. For larger values, products with usual numbers could overflow in float32."""
_LARGEST_WHOLE = 10**9
"""The largest accepted value of the epochs, the seed, and other settings that are whole numbers."""
_POSITIVE = ("batch_size", "epochs", "steps", "inner_steps")
_WHOLE_NUMBERS = ("warmup", *_POSITIVE)
_NUMBERS = ("lr", "weight_decay", *_WHOLE_NUMBERS)


@dataclass(frozen=True)
class TrainingRequest:
    """The options of a training. If an option is None or empty, the track's value of this option is used."""

    defense: str
    track: str
    eps: Fraction | None = None
    epochs: int | None = None
    num_images: int | None = None
    seed: int = 0
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Changed settings of the defense, the schedule and the inner attack. The keys are names of settings."""
    images: Path | None = None
    """A folder of training images. If it is None, the training uses the fine-tuning dataset of the track."""
    base: str = ""
    """The model to fine-tune: a name, a card file, or open_clip:ARCH/TAG. "" means the base model of the track."""
    precision: str = "float32"

    @property
    def name(self) -> str:
        """The name of the trained model: the name of the defense, followed by the seed if the seed is not 0."""
        return f"{self.defense}-seed{self.seed}" if self.seed else self.defense


def make_job(request: TrainingRequest) -> Job:
    """Return the training that a request describes.

    Raises UserError for unknown names and settings, and for missing images.
    """
    return _resolve(request, hold_out=0)[0]


def make_sweep_job(request: TrainingRequest) -> tuple[Job, TrainingImages]:
    """Return the training that a request describes, and the images that it holds out for measuring accuracies.

    Raises UserError if no images can be held out.
    """
    return _resolve(request, hold_out=HELD_OUT)


def vary(job: Job, request: TrainingRequest, settings: Mapping[str, float]) -> Job:
    """Return a copy of `job` with other settings. The request is the one from which `job` was made.

    Raises UserError for settings that are not allowed.
    """
    varied = dataclasses.replace(request, settings={**request.settings, **settings})
    track: Track = TRACKS.load(request.track)
    published: Defense = DEFENSES.load(request.defense)
    defense, schedule = _defense(varied, track, published), _schedule(varied, track, published)
    schedule, changes = _with_short_warmup(schedule, varied, len(job.images))
    return dataclasses.replace(job, defense=defense, schedule=schedule, changes=changes)


def with_images(job: Job, request: TrainingRequest, images: TrainingImages) -> Job:
    """Return a copy of `job` with other training images. The request is the one from which `job` was made.

    Raises UserError if the settings need more images.
    """
    track: Track = TRACKS.load(request.track)
    published = _schedule(request, track, DEFENSES.load(request.defense))
    schedule, changes = _with_short_warmup(published, request, len(images))
    return dataclasses.replace(job, images=images, schedule=schedule, changes=changes)


def _resolve(request: TrainingRequest, *, hold_out: int) -> tuple[Job, TrainingImages]:
    published: Defense = DEFENSES.load(request.defense)
    track: Track = TRACKS.load(request.track)
    for name, value in (("--seed", request.seed), ("--epochs", request.epochs or 0)):
        if not 0 <= value <= _LARGEST_WHOLE:
            raise UserError(f"{name} must be between 0 and {_LARGEST_WHOLE}, got {value}: give another number")
    # Settings are checked before the model is loaded, because loading may need a download.
    defense, schedule = _defense(request, track, published), _schedule(request, track, published)
    threat = Threat("Linf", track.training_eps if request.eps is None else request.eps)
    if not request.images and not track.training:
        raise UserError(
            f"the track {track.name!r} needs a folder of training images, and none was given: give one by --images DIR"
        )
    model = load_model(request.base or track.base, track.name)
    side = model.architecture.image_size
    transform = _transform(published.resize, side) if request.images and published.resize else None
    dataset = _dataset(request, track, published, side, transform)
    images, held_out = _split(request, track, dataset, hold_out)
    schedule, changes = _with_short_warmup(schedule, request, len(images))
    job = Job(
        defense, schedule, model, dataset, images, threat.eps, request.seed, request.precision, changes, transform
    )
    return job, held_out


def _with_short_warmup(
    schedule: Schedule, request: TrainingRequest, num_images: int
) -> tuple[Schedule, tuple[str, ...]]:
    """Shorten the warm-up of a published schedule if it is too long for the training.

    Return the schedule and a tuple with a sentence about the change. The tuple is empty if nothing was changed. The
    lengths of published warm-ups are made for ImageNet. With fewer images, the learning rate would not come close to
    its highest value. A warm-up that the user gives is not changed.
    """
    steps = schedule.steps or schedule.epochs * (num_images // schedule.batch_size)
    longest = int(_LARGEST_WARMUP * steps)
    if "warmup" in request.settings or schedule.warmup <= longest:
        return schedule, ()
    change = (
        f"the number of warm-up steps is {longest} instead of {schedule.warmup}, because the training has only {steps}"
        " steps; --set warmup=N gives another number"
    )
    return dataclasses.replace(schedule, warmup=longest), (change,)


def _defense(request: TrainingRequest, track: Track, defense: Defense) -> Defense:
    """Return the defense with the inner attack of the track, and with the settings that the request changes."""
    _check_settings(defense, request.settings)
    own = {name: value for name, value in request.settings.items() if name in defense.settings}
    # The step size of a track is a fraction of eps. The step size of a defense's recipe may be in another unit.
    unit = {"step_unit": "eps"} if "step_size" in track.inner_attack else {}
    steps = {"steps": int(request.settings["inner_steps"])} if "inner_steps" in request.settings else {}
    inner = dataclasses.replace(defense.inner, **{**unit, **track.inner_attack, **steps})
    return dataclasses.replace(defense, inner=inner, settings={**defense.settings, **own})


def _check_settings(defense: Defense, settings: Mapping[str, float]) -> None:
    allowed = {*defense.settings, *_NUMBERS}
    for name, value in settings.items():
        if name not in allowed:
            raise UserError(unknown(f"setting of {defense.name}", name, sorted(allowed)))
        if not math.isfinite(value):
            raise UserError(f"the setting {name} must be a finite number, got {value}: give another value")
        least = int(name in _POSITIVE)
        most = _LARGEST_WHOLE if name in _WHOLE_NUMBERS else _LARGEST
        if abs(value) > most:
            raise UserError(f"the setting {name} must be from {-most:g} to {most:g}, got {value:g}: give another value")
        if name in _WHOLE_NUMBERS and (value != int(value) or value < least):
            raise UserError(
                f"the setting {name} must be a whole number of {least} or more, got {value}: give another value"
            )
        if name in _NUMBERS and value < 0:
            raise UserError(f"the setting {name} must be 0 or more, got {value}: give another value")


def _schedule(request: TrainingRequest, track: Track, defense: Defense) -> Schedule:
    """Return the schedule of the track with the settings that the request changes.

    If the track does not define a schedule, the schedule of the defense is used.
    """
    schedule = track.schedule or defense.schedule
    changes: dict[str, Any] = {
        name: int(value) if name in _WHOLE_NUMBERS else value
        for name, value in request.settings.items()
        if name in _NUMBERS and name != "inner_steps"
    }
    if request.epochs:
        if "epochs" in changes:
            raise UserError("epochs are given twice, by --epochs and by --set epochs=N: give one of the two options")
        changes["epochs"] = request.epochs
    if "epochs" in changes and "steps" in changes:
        raise UserError("both epochs and steps are given as the length of the training: give only one of them")
    other = {"epochs": "steps", "steps": "epochs"}
    changes |= {other[name]: 0 for name in other if name in changes}
    lr = track.learning_rates.get(defense.name, schedule.lr)
    return dataclasses.replace(schedule, **{"lr": lr, **changes})


def _transform(resize: Resize, side: int) -> Transform:
    return Transform(round(resize.ratio * side), side, resize.interpolation)


def _dataset(
    request: TrainingRequest, track: Track, defense: Defense, side: int, transform: Transform | None
) -> Dataset:
    if request.images:
        return training_folder(request.images, defense.prompt, side, transform)
    dataset: Dataset = DATASETS.load(track.training)
    return dataset


def _split(
    request: TrainingRequest, track: Track, dataset: Dataset, hold_out: int
) -> tuple[TrainingImages, TrainingImages]:
    """Return the training images and the held-out images.

    All images are sorted by the hash of their ids. The first ones are training images, the next ones are held out.
    """
    everything = in_hashed_order(dataset.open())
    available = len(everything)
    reserved = min(hold_out, available // 10)
    wanted = request.num_images or (available - reserved if request.images else track.num_training_images)
    if wanted > available - (1 if hold_out else 0):
        rest = " and keep at least 1 image to measure accuracies" if hold_out else ""
        raise UserError(
            f"the dataset {dataset.name!r} has {available} images, not {wanted}: give a smaller number by"
            f" --num-images{rest}"
        )
    return everything.slice(0, wanted), everything.slice(wanted, min(wanted + hold_out, available))
