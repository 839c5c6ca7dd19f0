"""Resolving of a request: names become cells, each with its identity. Nothing is attacked and no speed is measured."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import folder_dataset
from robustbench_vlm.datasets.published.local_copy import data_root, find_images, is_available, prepare_dataset
from robustbench_vlm.engine.backends import resolve_resources
from robustbench_vlm.engine.cell import Cell, Samples, choose_samples
from robustbench_vlm.engine.model_cache import loaded_model, release
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import (
    CPU_BATCH_SIZE,
    Resources,
    choose_batch_size,
    sample_memory,
    with_fitting_batch_size,
)
from robustbench_vlm.engine.shard import MEASURED_SAMPLES, cell_classifier, load_batch
from robustbench_vlm.models.card import find_card
from robustbench_vlm.models.loading import fetch
from robustbench_vlm.models.precision import check_precision
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.test_time.defended_model import DefendedModel, checked_reference
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Plan:
    """A resolved request: its cells, models outermost, then attacks, eps, datasets."""

    request: Request
    """With the device, workers and batch size filled in."""
    track: Track
    protocol: Protocol
    cells: tuple[Cell, ...]

    @property
    def samples(self) -> int:
        """The number of samples of all cells together."""
        return sum(len(cell) for cell in self.cells)


@dataclass(frozen=True)
class _ModelFacts:
    """The facts about a model that cells need; they outlive the model's memory."""

    reference: str
    name: str
    digest: str
    image_size: int
    """Side of the images that the model is attacked at, in pixels."""
    attacks: tuple[Attack, ...]
    """As the model's test-time defense adapts them."""


def resolve(request: Request, on_progress: OnProgress = ignore_progress) -> Plan:
    """Return the cells of a request: find every name, read each model's digest, and read the chosen images once.

    Only one model is in memory at a time. Missing weights are fetched and missing images of published datasets are
    prepared; `on_progress` reports on that. `cost.estimate_cost` measures what the plan costs. Raises UserError
    for unknown names (with the nearest), eps in other units, an attack that does not support the norm, a precision
    that the device does not have, missing datasets, models that cannot be loaded or share a name, and unreadable
    images unless the request skips them.
    """
    track: Track = TRACKS.load(request.track)
    protocol = _protocol(request, track)
    resources = resolve_resources(request.resources)
    for precision in (protocol.precision, protocol.verdict_precision, protocol.logit_precision):
        check_precision(precision, resources.device)
    threats = _threats(request, track)
    names = [protocol.attack_name(name) for name in _once("attack", request.attacks)]
    attacks = [protocol.adapt_attack(load_attack(name), threats[0].norm) for name in dict.fromkeys(names)]
    for attack in attacks:
        attack.check_norm(threats[0].norm)
    # Before models, whose weights may have to be fetched.
    find_images.cache_clear()
    datasets = _datasets(request, track, protocol)
    models = _models(request, track, protocol, attacks, resources.device, on_progress)
    choices = _choices(request, datasets, protocol, {model.image_size for model in models}, on_progress)
    cells = tuple(
        Cell(track.name, model.reference, model.name, model.digest, dataset, attack, threat, protocol, samples)
        for model in models
        for attack in model.attacks
        for threat in threats
        for dataset, samples in choices[model.image_size]
    )
    resources = dataclasses.replace(resources, batch_size=resources.batch_size or _batch_size(cells, resources))
    return Plan(dataclasses.replace(request, resources=resources), track, protocol, cells)


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


def _models(
    request: Request, track: Track, protocol: Protocol, attacks: Sequence[Attack], device: str, on_progress: OnProgress
) -> list[_ModelFacts]:
    """Load each model, take its facts, and release it before the next one is loaded."""
    references = _once("model", request.models)
    for reference in references:
        fetch(find_card(str(checked_reference(reference).model), track.name), track.name, on_progress)
    # A checkpoint may have changed since this process loaded it last.
    release()
    found: dict[str, _ModelFacts] = {}
    for reference in references:
        facts = _facts_of(reference, track, protocol, attacks, device)
        if facts.name in found:
            raise UserError(
                f"{found[facts.name].reference} and {reference} are both named {facts.name!r}, so their records would"
                " mix: give each card a name of its own, or run them apart"
            )
        found[facts.name] = facts
    return list(found.values())


def _facts_of(reference: str, track: Track, protocol: Protocol, attacks: Sequence[Attack], device: str) -> _ModelFacts:
    # A function of its own, so that no variable holds the model while the next one is loaded.
    model = loaded_model(reference, track.name, device)
    adapted = [model.adapt_attack(attack) if isinstance(model, DefendedModel) else attack for attack in attacks]
    side = protocol.image_size or model.architecture.image_size
    return _ModelFacts(reference, model.name, model.digest, side, tuple(adapted))


def _datasets(request: Request, track: Track, protocol: Protocol) -> list[Dataset]:
    """Return the requested datasets as the protocol adapts them; none if a folder of images is given."""
    _check_image_source(request, track, protocol)
    if request.images is not None:
        return []
    names = _once("dataset", request.datasets or protocol.datasets or track.datasets)
    datasets = [protocol.adapt_dataset(DATASETS.load(name)) for name in names]
    absent = [dataset.name for dataset in datasets if not is_available(dataset, request.data)]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(datasets)} datasets are not below {data_root(request.data)}:"
            f" {', '.join(absent)}. `vlmbench data list` says how each is obtained, `vlmbench data prepare"
            f" {absent[0]}` fetches one, --data names another folder, --dataset other datasets"
        )
    return datasets


def _check_image_source(request: Request, track: Track, protocol: Protocol) -> None:
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
    """Return the datasets and their samples by image size, on which only the images of a folder depend."""
    if request.images is None:
        opened = [prepare_dataset(dataset, protocol.samples, request.data, on_progress) for dataset in datasets]
        same = [
            (dataset, choose_samples(dataset, protocol, skip_unreadable=request.skip_unreadable)) for dataset in opened
        ]
        return dict.fromkeys(sides, same)
    folders = {side: folder_dataset(request.images, request.prompt, side) for side in sides}
    return {
        side: [(folder, choose_samples(folder, protocol, skip_unreadable=request.skip_unreadable))]
        for side, folder in folders.items()
    }


def _batch_size(cells: Sequence[Cell], resources: Resources) -> int:
    """Return the default batch size; on a GPU from the memory that one pass of each model takes."""
    if resources.device == "cpu":
        return CPU_BATCH_SIZE
    first = {cell.model: cell for cell in reversed(cells)}
    most = max(_sample_memory(cell, resources.device) for cell in reversed(first.values()))
    return choose_batch_size(resources.device, most, resources.workers)


def _sample_memory(cell: Cell, device: str) -> int:
    count = min(len(cell), MEASURED_SAMPLES)
    images = load_batch(cell, 0, count, device=device)[0].images
    classifier = cell_classifier(cell, device).plain
    found, _ = with_fitting_batch_size(lambda fewer: sample_memory(classifier, images[:fewer]), count)
    return found


def _once(kind: str, names: Iterable[str]) -> list[str]:
    given = list(dict.fromkeys(names))
    if not given:
        raise UserError(f"no {kind} is given: name one or more")
    return given
