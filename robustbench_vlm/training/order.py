"""From names and texts to a job: which track, which recipe, with which of its numbers changed."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.dataset import Dataset
from robustbench_vlm.datasets.imagenet import training_folder
from robustbench_vlm.defenses import DEFENSES
from robustbench_vlm.defenses.defense import Defense, Schedule
from robustbench_vlm.errors import UserError
from robustbench_vlm.models.clip import Model, load_model
from robustbench_vlm.registry import unknown
from robustbench_vlm.tracks import TRACKS, Track
from robustbench_vlm.training.job import Job

_WHOLE_NUMBERS = ("batch", "warmup", "epochs", "steps", "inner_steps")
_NUMBERS = ("rate", "weight_decay", *_WHOLE_NUMBERS)


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
    """A folder of pictures in place of the track's fine-tuning set."""
    base: str = ""
    """The model to start from: a name, a card file, or open_clip:ARCH/PRETRAINED."""
    precision: str = "float32"


def make_job(order: Order) -> tuple[Job, Track]:
    """Resolve the names of an order; raise UserError for unknown names and settings, and missing pictures."""
    defense: Defense = DEFENSES.load(order.defense)
    track: Track = TRACKS.load(order.track)
    _check_settings(defense, order.settings)
    # Before the model, whose weights may have to be fetched.
    if not order.images and not track.training:
        raise UserError(f"the track {track.name!r} trains on your own pictures: give their folder by --images DIR")
    own = {name: value for name, value in order.settings.items() if name in defense.settings}
    # The track's budget is equal for all, the passes of the inner attack included.
    inner = dataclasses.replace(defense.inner, **{**track.inner, **_inner_steps(order)})
    model = load_model(order.base or track.base, track.name)
    dataset = _dataset(order, track, model)
    return Job(
        defense=dataclasses.replace(defense, inner=inner, settings={**defense.settings, **own}),
        schedule=_schedule(order, track, defense),
        model=model,
        dataset=dataset,
        pictures=_count(order, track, dataset),
        eps=order.eps if order.eps is not None else track.training_eps,
        seed=order.seed,
        precision=order.precision,
    ), track


def _check_settings(defense: Defense, settings: Mapping[str, float]) -> None:
    allowed = {*defense.settings, *_NUMBERS}
    for name, value in settings.items():
        if name not in allowed:
            raise UserError(unknown(f"setting of {defense.name}", name, sorted(allowed)))
        if not math.isfinite(value):
            raise UserError(f"the setting {name} is {value}: give a finite number")
        if name in _WHOLE_NUMBERS and (value != int(value) or value < (name != "warmup")):
            raise UserError(f"the setting {name} is {value}: give a whole number of {int(name != 'warmup')} or more")


def _inner_steps(order: Order) -> dict[str, int]:
    return {"steps": int(order.settings["inner_steps"])} if "inner_steps" in order.settings else {}


def _schedule(order: Order, track: Track, defense: Defense) -> Schedule:
    """Return the track's budget, or the published schedule where the track has none, with what the order changes."""
    schedule = track.schedule or defense.schedule
    rate = track.rates.get(defense.name, schedule.rate)
    changes: dict[str, Any] = {
        name: int(value) if name in _WHOLE_NUMBERS else value
        for name, value in order.settings.items()
        if name in _NUMBERS and name != "inner_steps"
    }
    if order.epochs:
        changes["epochs"] = order.epochs
    if "epochs" in changes and "steps" in changes:
        raise UserError("a training counts epochs or steps: give one of them")
    other = {"epochs": "steps", "steps": "epochs"}
    changes |= {other[name]: 0 for name in other if name in changes}
    return dataclasses.replace(schedule, **{"rate": rate, **changes})


def _dataset(order: Order, track: Track, model: Model) -> Dataset:
    if order.images:
        return training_folder(order.images, model.architecture.side)
    dataset: Dataset = DATASETS.load(track.training)
    return dataset


def _count(order: Order, track: Track, dataset: Dataset) -> int:
    available = len(dataset.open().ids)
    wanted = order.pictures or (available if order.images else track.training_pictures)
    if wanted > available:
        raise UserError(
            f"the data set {dataset.name!r} has {available} pictures, not {wanted}: give fewer by --pictures"
        )
    return wanted
