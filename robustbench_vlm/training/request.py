"""From names and texts to a job: which track, which recipe, with which of its numbers changed."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.training_folder import training_folder
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.base import Defense, Schedule
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.data import Pictures, in_hashed_order
from robustbench_vlm.training.job import Job

HELD_OUT = 1024
"""Images of the fine-tuning set that a sweep measures on and never trains on; a tenth of a smaller folder."""
_POSITIVE = ("batch_size", "epochs", "steps", "inner_steps")
_WHOLE_NUMBERS = ("warmup", *_POSITIVE)
_NUMBERS = ("lr", "weight_decay", *_WHOLE_NUMBERS)


@dataclass(frozen=True)
class Order:
    """What a person asked of `train`: None and empty take the track's setting."""

    defense: str
    track: str
    eps: Fraction | None = None
    epochs: int | None = None
    pictures: int | None = None
    seed: int = 0
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Numbers of the defense and of the schedule, by name."""
    images: Path | None = None
    """A folder of images in place of the track's fine-tuning set."""
    base: str = ""
    """The model to start from: a name, a card file, or open_clip:ARCH/PRETRAINED."""
    precision: str = "float32"

    @property
    def name(self) -> str:
        """The name of the model that comes out, which keeps the records of other seeds apart."""
        return f"{self.defense}-seed{self.seed}" if self.seed else self.defense


def make_job(order: Order) -> Job:
    """Resolve the names of an order; raise UserError for unknown names and settings, and missing images."""
    return _resolve(order, hold_out=0)[0]


def make_sweep_job(order: Order) -> tuple[Job, Pictures]:
    """Return an order's job and the images held out of it; raise UserError where none are left."""
    return _resolve(order, hold_out=HELD_OUT)


def vary(job: Job, order: Order, settings: Mapping[str, float]) -> Job:
    """Return an order's job with other settings; raise UserError for settings that cannot be."""
    varied = dataclasses.replace(order, settings={**order.settings, **settings})
    track: Track = TRACKS.load(order.track)
    published: Defense = DEFENSES.load(order.defense)
    return dataclasses.replace(
        job, defense=_defense(varied, track, published), schedule=_schedule(varied, track, published)
    )


def _resolve(order: Order, *, hold_out: int) -> tuple[Job, Pictures]:
    published: Defense = DEFENSES.load(order.defense)
    track: Track = TRACKS.load(order.track)
    # Both before the model, whose weights may have to be fetched.
    defense, schedule = _defense(order, track, published), _schedule(order, track, published)
    if not order.images and not track.training:
        raise UserError(f"the track {track.name!r} trains on your own images: give their folder by --images DIR")
    model = load_model(order.base or track.base, track.name)
    dataset = _dataset(order, track, published, model.architecture.side)
    pictures, held_out = _split(order, track, dataset, hold_out)
    eps = order.eps if order.eps is not None else track.training_eps
    return Job(defense, schedule, model, dataset, pictures, eps, order.seed, order.precision), held_out


def _defense(order: Order, track: Track, defense: Defense) -> Defense:
    """Return the recipe with the order's settings, and the inner attack that is the same for all on the track."""
    _check_settings(defense, order.settings)
    own = {name: value for name, value in order.settings.items() if name in defense.settings}
    steps = {"steps": int(order.settings["inner_steps"])} if "inner_steps" in order.settings else {}
    inner = dataclasses.replace(defense.inner, **{**track.inner, **steps})
    return dataclasses.replace(defense, inner=inner, settings={**defense.settings, **own})


def _check_settings(defense: Defense, settings: Mapping[str, float]) -> None:
    allowed = {*defense.settings, *_NUMBERS}
    for name, value in settings.items():
        if name not in allowed:
            raise UserError(unknown(f"setting of {defense.name}", name, sorted(allowed)))
        if not math.isfinite(value):
            raise UserError(f"the setting {name} is {value}: give a finite number")
        least = int(name in _POSITIVE)
        if name in _WHOLE_NUMBERS and (value != int(value) or value < least):
            raise UserError(f"the setting {name} is {value}: give a whole number of {least} or more")
        if name in _NUMBERS and value < 0:
            raise UserError(f"the setting {name} is {value}: give 0 or more")


def _schedule(order: Order, track: Track, defense: Defense) -> Schedule:
    """Return the track's budget, or the published schedule where the track has none, with what the order changes."""
    schedule = track.schedule or defense.schedule
    changes: dict[str, Any] = {
        name: int(value) if name in _WHOLE_NUMBERS else value
        for name, value in order.settings.items()
        if name in _NUMBERS and name != "inner_steps"
    }
    if order.epochs:
        if "epochs" in changes:
            raise UserError("epochs are given twice, by --epochs and as a setting: give them once")
        changes["epochs"] = order.epochs
    if "epochs" in changes and "steps" in changes:
        raise UserError("a training counts epochs or steps: give one of them")
    other = {"epochs": "steps", "steps": "epochs"}
    changes |= {other[name]: 0 for name in other if name in changes}
    lr = track.learning_rates.get(defense.name, schedule.lr)
    return dataclasses.replace(schedule, **{"lr": lr, **changes})


def _dataset(order: Order, track: Track, defense: Defense, side: int) -> Dataset:
    if order.images:
        return training_folder(order.images, defense.prompt, side)
    dataset: Dataset = DATASETS.load(track.training)
    return dataset


def _split(order: Order, track: Track, dataset: Dataset, hold_out: int) -> tuple[Pictures, Pictures]:
    """Return the images to train on and, after them in the order of their hashes, those held out."""
    everything = in_hashed_order(dataset.open())
    available = len(everything)
    spared = min(hold_out, available // 10)
    wanted = order.pictures or (available - spared if order.images else track.training_pictures)
    if wanted > available - (1 if hold_out else 0):
        left = " and leave some to measure on" if hold_out else ""
        raise UserError(
            f"the dataset {dataset.name!r} has {available} images, not {wanted}: give fewer by --num-images{left}"
        )
    return everything.part(0, wanted), everything.part(wanted, min(wanted + hold_out, available))
