"""Diagnoses: the diagnostics of a request's models at its radii, each dataset's and their means."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.analysis.measures import Examined, effective_rank, examine, modality_gap, walk_of
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.model_cache import classifier_of, expect_weights
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.precision import arithmetic


@dataclass(frozen=True)
class DatasetDiagnosis:
    """One model at one radius on one dataset."""

    dataset: str
    n: int
    accuracy: float
    """Share of the attacked images that are classified correctly, in [0, 1]."""
    modality_gap: float
    """In [0, 2], see `diagnostics.modality_gap`."""
    gradient_norm: float
    """Mean of `diagnostics.gradient_norms`: nats per unit of pixel distance, pixels in [0, 1]."""


@dataclass(frozen=True)
class Diagnosis:
    """One model at one radius; all but the rank are unweighted means over the datasets."""

    model: str
    norm: str
    eps: str
    """As people write it, "8/255"."""
    accuracy: float
    modality_gap: float
    gradient_norm: float
    effective_rank: float
    """Of the image features of all datasets together; at most the number of samples and of dimensions."""
    datasets: tuple[DatasetDiagnosis, ...]


@dataclass(frozen=True)
class Diagnoses:
    """What was found: one diagnosis for every model x radius, in the order of the request."""

    track: str
    protocol: str
    attack: str
    dimensions: int
    """Of the largest embedding."""
    diagnoses: tuple[Diagnosis, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        document: dict[str, Any] = plain(self)
        return document


def diagnose(request: Request, *, on_progress: OnProgress = ignore_progress) -> Diagnoses:
    """Diagnose the request's models at its radii under its one attack.

    Raises UserError as `resolve`, `walk_of` and `expect_weights` do.
    """
    begun = time.monotonic()
    (name,) = request.attacks
    for model in request.models:
        expect_weights(model)
    walk_of(load_attack(name))
    plan = resolve(request)
    found = _diagnose_cells(plan, on_progress)
    groups: dict[tuple[str, Threat], list[tuple[DatasetDiagnosis, Tensor]]] = {}
    for number, cell in enumerate(plan.cells):
        groups.setdefault((cell.model_name, cell.threat), []).append(found[number])
    return Diagnoses(
        track=plan.track.name,
        protocol=plan.protocol.label,
        attack=name,
        dimensions=max(features.shape[1] for _, features in found.values()),
        diagnoses=tuple(_diagnosis(model, threat, values) for (model, threat), values in groups.items()),
        seconds=time.monotonic() - begun,
    )


def _diagnose_cells(plan: Plan, on_progress: OnProgress) -> dict[int, tuple[DatasetDiagnosis, Tensor]]:
    """Return what was found, and the image features, by the number of the cell."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, cell in enumerate(plan.cells):
        groups.setdefault((cell.model, cell.dataset.name), []).append(number)
    work, total = 0, sum(map(_passes, plan.cells))
    seconds = 0.0 if on_progress is ignore_progress else estimate_cost(plan).seconds_most
    on_progress(Progress(0, plan.samples, seconds))
    found: dict[int, tuple[DatasetDiagnosis, Tensor]] = {}
    begun = time.monotonic()
    with arithmetic():
        for numbers in groups.values():
            cells = [plan.cells[number] for number in numbers]
            found |= zip(numbers, _diagnose_radii(cells, plan.request.resources), strict=True)
            work += sum(map(_passes, cells))
            samples = sum(len(plan.cells[number]) for number in found)
            left = (time.monotonic() - begun) / work * (total - work)
            label = f"{cells[0].model_name} / {cells[0].dataset.name}"
            on_progress(Progress(samples, plan.samples, left, label, work))
    return found


def _diagnose_radii(cells: Sequence[Cell], resources: Resources) -> list[tuple[DatasetDiagnosis, Tensor]]:
    """Diagnose cells that differ in their radius alone: their images are read, or drawn, once."""
    first = cells[0]
    classifier = classifier_of(first.model, first.track, first.dataset.prompts, resources.device).plain
    parts: list[list[Examined]] = [[] for _ in cells]
    for start in range(0, len(first), resources.batch_size):
        batch, _ = load_batch(first, start, min(start + resources.batch_size, len(first)), device=resources.device)
        for cell, examined in zip(cells, parts, strict=True):
            threatened = dataclasses.replace(batch, threat=cell.threat)
            examined.append(examine(classifier, threatened, walk_of(cell.attack)))
    return [_joined(first.dataset.name, examined, classifier.text_features) for examined in parts]


def _joined(dataset: str, parts: Sequence[Examined], text_features: Tensor) -> tuple[DatasetDiagnosis, Tensor]:
    features, correct = (torch.cat([getattr(part, name) for part in parts]) for name in ("features", "correct"))
    found = DatasetDiagnosis(
        dataset=dataset,
        n=len(correct),
        accuracy=float(correct.double().mean()),
        modality_gap=modality_gap(features, text_features),
        gradient_norm=float(torch.cat([part.gradient_norms for part in parts]).mean()),
    )
    return found, features


def _diagnosis(model: str, threat: Threat, found: Sequence[tuple[DatasetDiagnosis, Tensor]]) -> Diagnosis:
    datasets = tuple(each for each, _ in found)
    return Diagnosis(
        model=model,
        norm=threat.norm,
        eps=threat.eps_text,
        accuracy=sum(each.accuracy for each in datasets) / len(datasets),
        modality_gap=sum(each.modality_gap for each in datasets) / len(datasets),
        gradient_norm=sum(each.gradient_norm for each in datasets) / len(datasets),
        effective_rank=effective_rank(torch.cat([features for _, features in found])),
        datasets=datasets,
    )


def _passes(cell: Cell) -> int:
    """Return the cost of a cell in passes, backward ones counted twice; at radius 0 nothing walks."""
    stage = walk_of(cell.attack)
    walked = stage.calls(stage.parameters, len(cell.dataset.classes))[1] if cell.threat.eps else 0
    return len(cell) * (4 + 3 * walked)
