"""Plans: a request of names and texts becomes cells, each with its identity, and an estimate of what they cost."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Logits
from robustbench_vlm.attacks.model import Transferred
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import folder_dataset
from robustbench_vlm.datasets.published.local_copy import data_root, is_there, located, ready
from robustbench_vlm.engine.cell import Cell, Samples
from robustbench_vlm.engine.cost import Estimate, Resources, Speed, estimate, measure_speed, threads_of_a_worker
from robustbench_vlm.engine.memory import choose_batch_size, with_fitting_batch_size
from robustbench_vlm.engine.model_cache import AnyModel, loaded_model, precise_classifier, release
from robustbench_vlm.engine.samples import choose_samples
from robustbench_vlm.models.card import find_card
from robustbench_vlm.models.loading import fetch
from robustbench_vlm.models.precision import check_precision
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.test_time.defended_model import DefendedModel, split_reference
from robustbench_vlm.tracks import TRACKS, Track

_TIMED = 32
"""Images on which a model's speed is measured."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; every combination of models, attacks, eps and datasets is one cell."""

    models: tuple[str, ...]
    """Names on the track, card files (*.json), or open_clip:ARCH/PRETRAINED."""
    attacks: tuple[str, ...] = ("autoattack",)
    track: str = "mini"
    datasets: tuple[str, ...] = ()
    """Empty: those of the track."""
    eps: tuple[str | Fraction, ...] = ()
    """Texts such as "4/255", or exact fractions, pixel scale [0, 1]. Empty: the track's standard eps."""
    norm: str = ""
    """"Linf" or "L2". Empty: the track's."""
    protocol: str = ""
    """Empty: the track's first."""
    samples: int | Literal["all"] | None = None
    """Samples a dataset, under a name of their own; None: as many as the protocol says."""
    images: Path | None = None
    """A folder with one sub-folder of images a class; it takes the place of the datasets."""
    prompt: str = "a photo of a {}."
    """The text for the classes of `images`."""
    data: Path | None = None
    """The folder of the published datasets. None: VLMBENCH_DATA, or "data" in the cache folder."""
    skip_unreadable: bool = False
    """Go on without images that cannot be decoded, and count them."""
    out: Path = Path("runs")
    resources: Resources = dataclasses.field(default_factory=Resources)
    """Device, workers, batch_size, shard size: nothing that a number depends on."""
    command: str = ""
    """The command line, for the manifest."""


@dataclass(frozen=True)
class Plan:
    """The cells of a request, models outermost, then attacks, eps, datasets; and what they are expected to cost."""

    request: Request
    track: Track
    protocol: Protocol
    cells: tuple[Cell, ...]
    estimate: Estimate

    @property
    def samples(self) -> int:
        """How many samples all cells have together."""
        return sum(len(cell) for cell in self.cells)


def make_plan(request: Request, on_progress: OnProgress = ignore_progress) -> Plan:
    """Resolve every name, load the models, read the chosen images once, and measure the model's speed.

    Released weights are fetched and images of published datasets are prepared if they are not yet; `on_progress`
    reports on that. Raises UserError for unknown names (with the nearest), eps in other units, an attack that is not
    for the norm, a precision that the device does not have, datasets that are not there, models that cannot be loaded
    or share a name, and unreadable images unless the request skips them.
    """
    track: Track = TRACKS.load(request.track)
    protocol = _protocol(request, track)
    resources = request.resources.resolved()
    for precision in (protocol.precision, protocol.verdict_precision, protocol.logit_precision):
        check_precision(precision, resources.device)
    threats = _threats(request, track)
    names = [protocol.attack_name(name) for name in _once("attack", request.attacks)]
    attacks = [protocol.adapt_attack(load_attack(name), threats[0].norm) for name in dict.fromkeys(names)]
    for attack in attacks:
        _check_norm(attack, threats[0])
    # Before models, whose weights may have to be fetched.
    located.cache_clear()
    datasets = _datasets(request, track, protocol)
    for name in _once("model", request.models):
        fetch(find_card(split_reference(name)[1], track.name), track.name, on_progress)
    # A checkpoint may have changed since this process loaded it last.
    release()
    models = {name: loaded_model(name, track.name, resources.device) for name in _once("model", request.models)}
    _check_names(models)
    sides = {name: protocol.image_size or model.architecture.side for name, model in models.items()}
    choices = _choices(request, datasets, protocol, set(sides.values()), on_progress)
    cells = tuple(
        Cell(track.name, name, model.name, model.digest, dataset, attack, threat, protocol, samples)
        for name, model in models.items()
        for attack in _adapted(attacks, model)
        for threat in threats
        for dataset, samples in choices[sides[name]]
    )
    speeds = _speeds(cells, resources)
    batch_size = resources.batch_size or choose_batch_size(
        resources.device, max(speed.sample for speed in speeds.values()), resources.workers
    )
    resources = dataclasses.replace(resources, batch_size=batch_size)
    counted = {name: _counted(model, protocol) for name, model in models.items()}
    cost = estimate([(cell, speeds[cell.model], counted[cell.model]) for cell in cells], resources)
    return Plan(dataclasses.replace(request, resources=resources), track, protocol, cells, cost)


def _protocol(request: Request, track: Track) -> Protocol:
    protocol: Protocol = PROTOCOLS.load(request.protocol or track.protocols[0])
    if request.samples is None:
        return protocol
    return protocol.with_samples(None if request.samples == "all" else request.samples)


def _threats(request: Request, track: Track) -> list[Threat]:
    norm = request.norm or track.norm
    if not request.eps and norm != track.norm:
        raise UserError(f"the track {track.name!r} has no standard eps in {norm}: give one by --eps, such as 1/2")
    radii = [parse_eps(eps) if isinstance(eps, str) else eps for eps in request.eps] or [track.standard_eps]
    return [Threat(norm, eps) for eps in dict.fromkeys(radii)]


def _check_norm(attack: Attack, threat: Threat) -> None:
    if threat.norm not in attack.norms:
        raise UserError(
            f"the attack {attack.name!r} is for {' and '.join(attack.norms)}, not for {threat.norm}:"
            " choose another attack, such as autoattack, or another --norm"
        )


def _adapted(attacks: Sequence[Attack], model: AnyModel) -> list[Attack]:
    return [model.adapt_attack(attack) if isinstance(model, DefendedModel) else attack for attack in attacks]


def _check_names(models: Mapping[str, AnyModel]) -> None:
    references: dict[str, str] = {}
    for reference, model in models.items():
        other = references.setdefault(model.name, reference)
        if other != reference:
            raise UserError(
                f"{other} and {reference} are both named {model.name!r}, so their records would mix: give each card a"
                " name of its own, or run them apart"
            )


def _datasets(request: Request, track: Track, protocol: Protocol) -> list[Dataset]:
    """Return the datasets that are asked for, as the protocol has them; none where a folder takes their place."""
    _check_pictures(request, track, protocol)
    if request.images is not None:
        return []
    names = _once("dataset", request.datasets or protocol.datasets or track.datasets)
    datasets = [protocol.adapt_dataset(DATASETS.load(name)) for name in names]
    absent = [dataset.name for dataset in datasets if not is_there(dataset, request.data)]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(datasets)} datasets are not below {data_root(request.data)}:"
            f" {', '.join(absent)}. `vlmbench data list` says how each is obtained, `vlmbench data prepare"
            f" {absent[0]}` fetches one, --data names another folder, --dataset other datasets"
        )
    return datasets


def _check_pictures(request: Request, track: Track, protocol: Protocol) -> None:
    if request.images is not None and request.datasets:
        raise UserError("--images takes the place of the datasets: give either --images or --dataset")
    if request.images is None and not request.datasets and not (protocol.datasets or track.datasets):
        raise UserError(
            f"the track {track.name!r} has no datasets of its own: give --images DIR, one folder a class, or --dataset"
            " NAME, which `vlmbench list datasets` shows"
        )


def _choices(
    request: Request, datasets: Sequence[Dataset], protocol: Protocol, sides: set[int], on_progress: OnProgress
) -> dict[int, list[tuple[Dataset, Samples]]]:
    """Return the datasets and their samples by the side of the images, which only a folder's depend on."""
    if request.images is None:
        opened = [ready(dataset, protocol.samples, request.data, on_progress) for dataset in datasets]
        same = [
            (dataset, choose_samples(dataset, protocol, skip_unreadable=request.skip_unreadable)) for dataset in opened
        ]
        return dict.fromkeys(sides, same)
    folders = {side: folder_dataset(request.images, request.prompt, side) for side in sides}
    return {
        side: [(folder, choose_samples(folder, protocol, skip_unreadable=request.skip_unreadable))]
        for side, folder in folders.items()
    }


def _speeds(cells: Sequence[Cell], resources: Resources) -> dict[str, Speed]:
    """Return each model's speed, measured on images of its first cell."""
    speeds: dict[str, Speed] = {}
    for cell in cells:
        if cell.model not in speeds:
            images = cell.dataset.open().read(cell.samples.indices[: min(resources.batch_size or _TIMED, _TIMED)])
            pixels = (images.to(torch.float32) / 255).to(resources.device)
            about = cell.model, cell.track, cell.dataset.prompts, resources.device
            classifier = precise_classifier(*about, cell.protocol.precision, cell.protocol.logit_precision)
            measure = functools.partial(_measure, classifier.plain, pixels)
            with threads_of_a_worker(resources.workers):
                speeds[cell.model], _ = with_fitting_batch_size(measure, len(pixels))
    return speeds


def _counted(model: AnyModel, protocol: Protocol) -> Logits:
    """Return a classifier that counts passes as those of all cells of a model do."""
    # Of one class: passes do not depend on the classes, whose texts may be 80,000.
    logits = model.classifier(["a photo."]).of_samples(torch.zeros(1, dtype=torch.int64))
    return logits if protocol.precision == protocol.verdict_precision else Transferred(logits, logits)


def _measure(classifier: torch.nn.Module, pixels: Tensor, count: int) -> Speed:
    return measure_speed(classifier, pixels[:count])


def _once(kind: str, names: Iterable[str]) -> list[str]:
    given = list(dict.fromkeys(names))
    if not given:
        raise UserError(f"no {kind} is given: name one or more")
    return given
