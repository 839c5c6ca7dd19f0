"""Resolve a request: look up every name and return the cells to compute. No sample is attacked."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.eot import check_draws, with_draws
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import folder_dataset
from robustbench_vlm.datasets.published.local_copy import prepare_dataset
from robustbench_vlm.engine.backends import resolve_resources
from robustbench_vlm.engine.cell import Cell, Samples, choose_samples
from robustbench_vlm.engine.fresh_draws import with_requested_draws
from robustbench_vlm.engine.missing import check_files, dataset_names
from robustbench_vlm.engine.model_cache import loaded_model, release
from robustbench_vlm.engine.radii import norm_of, threats_of
from robustbench_vlm.engine.request import DEFAULT_PROMPT, Request
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
from robustbench_vlm.models.reference import HuggingFaceModel, MemoryModel
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.test_time.defended_model import DefendedModel, checked_reference
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Plan:
    """A resolved request with its cells. They are sorted by model, attack, eps and dataset, in this order."""

    request: Request
    """The request with device, number of workers and batch size filled in."""
    track: Track
    protocol: Protocol
    cells: tuple[Cell, ...]
    input_sizes: Mapping[str, int]
    """Height and width of each model's input in pixels. The keys are the names of the models."""

    @property
    def samples(self) -> int:
        """The total number of samples of all cells."""
        return sum(len(cell) for cell in self.cells)


@dataclass(frozen=True)
class _ModelFacts:
    """The properties of a model that must be known after the model is released from memory."""

    reference: str
    name: str
    digest: str
    input_size: int
    """Height and width of the model's input in pixels."""
    context_length: int
    """Largest number of tokens that the text encoder reads."""
    attacks: tuple[Attack, ...]
    """The requested attacks, adapted to the model's test-time defense if it has one."""


def resolve(request: Request, on_progress: OnProgress = ignore_progress) -> Plan:
    """Look up the names of a request, read the digests of its models and images, and return its cells.

    Only one model is in memory at a time. Missing weights are downloaded, and missing images of published datasets are
    prepared. `on_progress` is called with the progress of both.

    Raises UserError for:

    * an unknown name (the message suggests similar names), or two models or two attacks with one name;
    * a missing dataset, or a model that cannot be loaded;
    * an eps that is not for pixels in [0, 1];
    * an attack that does not support the norm, or a device that does not support the precision;
    * an image that cannot be decoded, unless `skip_unreadable` is true.
    """
    track: Track = TRACKS.load(request.track_name)
    protocol = _protocol(request)
    resources = resolve_resources(request.resources)
    for precision in (protocol.precision, protocol.verdict_precision, protocol.logit_precision):
        check_precision(precision, resources.device)
    norm = norm_of(request, track, protocol)
    names = [protocol.attack_name(name) for name in _once("attack", request.attacks)]
    attacks = _with_different_names({name: protocol.adapt_attack(load_attack(name), norm) for name in names})
    for attack in attacks:
        attack.check_norm(norm)
        if protocol.draws > 1:
            check_draws(attack)
    # Missing files are reported before weights are downloaded.
    datasets = _datasets(request, track, protocol)
    models = _models(request, track, protocol, attacks, resources.device, on_progress)
    choices = _choices(request, datasets, protocol, {model.input_size for model in models}, on_progress)
    cells = tuple(
        Cell(
            track=track.name,
            model=model.reference,
            model_name=model.name,
            weights=model.digest,
            dataset=dataset,
            attack=attack,
            threat=threat,
            protocol=protocol,
            samples=samples,
            context_length=model.context_length,
        )
        for model in models
        for attack in model.attacks
        for threat in threats_of(request, track, protocol, norm, model.input_size)
        for dataset, samples in choices[model.input_size]
    )
    resources = dataclasses.replace(resources, batch_size=resources.batch_size or _batch_size(cells, resources))
    sizes = {model.name: model.input_size for model in models}
    return Plan(dataclasses.replace(request, resources=resources), track, protocol, cells, sizes)


def _with_different_names(attacks: Mapping[str, Attack]) -> list[Attack]:
    """Return the attacks without repetitions. The keys are names and paths of attack files.

    Raises UserError if two different attacks have the same name, because a table is for one attack with this name.
    """
    found: dict[str, tuple[str, Attack]] = {}
    for reference, attack in attacks.items():
        earlier, known = found.setdefault(attack.name, (reference, attack))
        if [stage.identity for stage in known.stages] != [stage.identity for stage in attack.stages]:
            raise UserError(
                f"{earlier} and {reference} are different attacks with the name {attack.name!r}, but attacks of one run"
                " must have different names: change the name in one of the files"
            )
    return [attack for _, attack in found.values()]


def _protocol(request: Request) -> Protocol:
    protocol: Protocol = PROTOCOLS.load(request.protocol_name)
    if request.samples is not None:
        protocol = protocol.with_samples(None if request.samples == "all" else request.samples)
    return with_requested_draws(protocol, request)


def _models(
    request: Request,
    track: Track,
    protocol: Protocol,
    attacks: Sequence[Attack],
    device: str,
    on_progress: OnProgress,
) -> list[_ModelFacts]:
    """Load each model, read its properties, and release it before the next one is loaded."""
    references = _once("model", request.models)
    for reference in references:
        model = checked_reference(reference).model
        if not isinstance(model, MemoryModel | HuggingFaceModel):
            fetch(find_card(str(model), track.name), track.name, on_progress)
    # Cached models are released, because a checkpoint may have changed since this process loaded it.
    release()
    found: dict[str, _ModelFacts] = {}
    for reference in references:
        facts = _facts_of(reference, track, protocol, attacks, device)
        if facts.name in found:
            raise UserError(
                f"{found[facts.name].reference} and {reference} are both named {facts.name!r}, but models of one run"
                " must have different names: change the name in one of the cards, or use a separate run for each"
            )
        found[facts.name] = facts
    return list(found.values())


def _facts_of(reference: str, track: Track, protocol: Protocol, attacks: Sequence[Attack], device: str) -> _ModelFacts:
    # This code is in a separate function, so that no variable refers to the model after the call. The memory of the
    # model can then be freed.
    model = loaded_model(reference, track.name, device)
    adapted = [model.adapt_attack(attack) if isinstance(model, DefendedModel) else attack for attack in attacks]
    if protocol.draws > 1:
        adapted = [with_draws(attack, protocol.eot) for attack in adapted]
    return _ModelFacts(reference, model.name, model.digest, model.image_size, model.context_length, tuple(adapted))


def _datasets(request: Request, track: Track, protocol: Protocol) -> list[Dataset]:
    """Return the requested datasets. The list is empty if a folder of images is given."""
    check_files(request)
    datasets: list[Dataset] = [DATASETS.load(name) for name in dataset_names(request)]
    for dataset in datasets:
        protocol.adapt_dataset(dataset)  # raises UserError if the protocol has no prompts for the dataset
    return datasets


def _choices(
    request: Request, datasets: Sequence[Dataset], protocol: Protocol, sizes: set[int], on_progress: OnProgress
) -> dict[int, list[tuple[Dataset, Samples]]]:
    """Return the datasets and their samples for each input size in `sizes`, in pixels.

    The datasets have the prompts of the protocol. Images from a user's folder have the protocol's image size. If the
    protocol has none, they have the model's input size. Published datasets depend on the input size only if the
    protocol's resolution is "native".
    """

    def adapted(size: int) -> list[Dataset]:
        if request.images is not None:
            return [folder_dataset(request.images, request.prompt or DEFAULT_PROMPT, protocol.image_size or size)]
        return [protocol.adapt_dataset(dataset, size) for dataset in datasets]

    def chosen(dataset: Dataset) -> tuple[Dataset, Samples]:
        opened = prepare_dataset(dataset, protocol.samples, request.data, on_progress)
        return opened, choose_samples(opened, protocol, skip_unreadable=request.skip_unreadable)

    found: list[tuple[list[Dataset], list[tuple[Dataset, Samples]]]] = []
    by_size: dict[int, list[tuple[Dataset, Samples]]] = {}
    for size in sizes:
        wanted = adapted(size)
        # Datasets that do not depend on the input size are read only once.
        known = next((choice for same, choice in found if same == wanted), None)
        by_size[size] = known or [chosen(dataset) for dataset in wanted]
        found.append((wanted, by_size[size]))
    return by_size


def _batch_size(cells: Sequence[Cell], resources: Resources) -> int:
    """Return the default batch size. On a GPU, it depends on the memory that each model needs for one pass."""
    if resources.device == "cpu":
        return CPU_BATCH_SIZE
    first = {cell.model: cell for cell in reversed(cells)}
    most = max(_sample_memory(cell, resources.device) for cell in reversed(first.values()))
    return choose_batch_size(resources.device, most, resources.workers)


def _sample_memory(cell: Cell, device: str) -> int:
    """Return the memory in bytes that one sample of a cell takes under attack."""
    count = min(len(cell), MEASURED_SAMPLES)
    images = load_batch(cell, 0, count, device=device)[0].images
    classifier = cell_classifier(cell, device).plain
    found, _ = with_fitting_batch_size(lambda fewer: sample_memory(classifier, images[:fewer]), count)
    return found


def _once(kind: str, names: Iterable[str]) -> list[str]:
    """Return the names without repetitions. Raises UserError if `names` is empty."""
    given = list(dict.fromkeys(names))
    if not given:
        raise UserError(f"no {kind} is given, but at least one is needed: add --{kind} NAME")
    return given
