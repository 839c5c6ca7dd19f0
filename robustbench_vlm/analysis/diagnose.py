"""Diagnose models on attacked images: modality gap, norm of the input gradient, and effective rank of the features.

All values are measured on the images after the last step of an attack. The paper of GLADIATOR also shows the modality
gap and the gradient norm as functions of the radius (Dong, Koniusz, Qu and Ong, KDD 2025, doi:10.1145/3690624.3709296).
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch, Stage
from robustbench_vlm.attacks.losses import cross_entropy
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import ClassifierLike, as_classifier
from robustbench_vlm.core.errors import UserError
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
from robustbench_vlm.models.classifier import ZeroShotClassifier
from robustbench_vlm.models.precision import arithmetic


@dataclass(frozen=True)
class AttackedBatch:
    """Measurements of B attacked images."""

    correct: Tensor
    """bool [B]: whether the prediction is correct."""
    gradient_norms: Tensor
    """float64 [B]: L2 norm of the gradient of the cross-entropy with respect to the pixels."""
    features: Tensor
    """Image embeddings of length 1, [B, D] in the dtype of the classifier."""


@dataclass(frozen=True)
class DatasetDiagnosis:
    """Measurements of one model at one radius on one dataset."""

    dataset: str
    n: int
    accuracy: float
    """Share of the attacked images that are classified correctly, in [0, 1]."""
    modality_gap: float
    """Euclidean distance between the mean image embedding and the mean text embedding, in [0, 2]."""
    gradient_norm: float
    """Mean L2 norm of the gradient of the cross-entropy, in nats per unit of L2 distance, for pixels in [0, 1]."""


@dataclass(frozen=True)
class Diagnosis:
    """Measurements of one model at one radius.

    Accuracy, modality gap and gradient norm are unweighted means over the datasets.
    """

    model: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    accuracy: float
    modality_gap: float
    gradient_norm: float
    effective_rank: float
    """Effective rank (exponential of the entropy of the singular values) of the image features of all datasets."""
    datasets: tuple[DatasetDiagnosis, ...]


@dataclass(frozen=True)
class Diagnoses:
    """The result of `diagnose`: one diagnosis for every model and radius, in the order of the request."""

    track: str
    protocol: str
    attack: str
    dimensions: int
    """Number of dimensions of the embeddings. If it differs between models, this is the largest number."""
    diagnoses: tuple[Diagnosis, ...]
    seconds: float
    """Wall time in seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the diagnoses as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def diagnose(request: Request, *, on_progress: OnProgress = ignore_progress) -> Diagnoses:
    """Diagnose each model of a request at each radius of the request.

    The request must have exactly one attack. Raises UserError if the request is invalid, if the attack cannot return
    the image after its last step, or if the weights of a model are missing.
    """
    begun = time.monotonic()
    (name,) = request.attacks
    for model in request.models:
        expect_weights(model)
    final_image_stage(load_attack(name))
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
    """Return the measurements and the image features, [N, D], of every cell.

    A cell is one model under one attack on one dataset at one radius. The keys are the indices of the cells in the
    plan.
    """
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
    """Diagnose one model on one dataset at several radii. The images are read only once for all radii."""
    first = cells[0]
    classifier = classifier_of(first.model, first.track, first.dataset.prompts, resources.device).plain
    parts: list[list[AttackedBatch]] = [[] for _ in cells]
    for start in range(0, len(first), resources.batch_size):
        batch, _ = load_batch(first, start, min(start + resources.batch_size, len(first)), device=resources.device)
        for cell, examined in zip(cells, parts, strict=True):
            threatened = dataclasses.replace(batch, threat=cell.threat)
            examined.append(measure_batch(classifier, threatened, final_image_stage(cell.attack)))
    return [_joined(first.dataset.name, examined, classifier.text_features) for examined in parts]


def _joined(dataset: str, parts: Sequence[AttackedBatch], text_features: Tensor) -> tuple[DatasetDiagnosis, Tensor]:
    """Join the measurements of all batches. Return the diagnosis of the dataset and the image features, [N, D]."""
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
    """Return the cost of a cell in forward passes.

    A backward pass counts as two forward passes. At radius 0 the attack is skipped.
    """
    stage = final_image_stage(cell.attack)
    backward = stage.calls(stage.parameters, len(cell.dataset.classes))[1] if cell.threat.eps else 0
    return len(cell) * (4 + 3 * backward)


def modality_gap(image_features: Tensor, text_features: Tensor) -> float:
    """Return the Euclidean distance, in [0, 2], between the mean image embedding and the mean text embedding.

    `image_features` [N, D] and `text_features` [C, D] are float embeddings of length 1. Source: Liang et al., NeurIPS
    2022, arXiv:2203.02053, section 4.
    """
    return float((image_features.double().mean(dim=0) - text_features.double().mean(dim=0)).norm())


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of float features [N, D], in [1, min(N, D)].

    It is the exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007). The
    features are not centred.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def gradient_norms(classifier: ClassifierLike, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient norms and logits.

    Each norm is the L2 norm of the cross-entropy's gradient with respect to the pixels. `images` are float [B, 3, H, W]
    in [0, 1] and `labels` int64 [B]. The norms are float64 [B]. The logits are [B, C], with the model's own logit
    scale. Raises UserError if a gradient is not finite.
    """
    model = CountedClassifier(as_classifier(classifier))
    # The softplus of the log-odds equals the cross-entropy. The gradient of the softplus is exact even if float32
    # rounds the probability of the true class to 1.
    found, _, gradient = model.gradient(
        images, lambda outputs: functional.softplus(cross_entropy(outputs, labels, labels))
    )
    if model.warnings:
        (wrong,) = model.warnings.values()
        raise UserError(
            f"the gradient of the loss is NaN or infinite at {int(wrong.sum())} of {len(wrong)} images, but a diagnosis"
            " needs finite gradients: run the model in float32, and look for a square root of zero or a division by"
            " zero in it"
        )
    return gradient.double().flatten(1).norm(dim=1), found


def final_image_stage(attack: Attack) -> Stage:
    """Return the only stage of an attack. Its settings are changed so that it returns the image after the last step.

    Some attacks stop at the first misclassified image. This image is near the decision boundary at every radius, so it
    is not useful for a diagnosis. Raises UserError if the attack has several stages, or if it cannot continue after the
    first misclassified image.
    """
    if len(attack.stages) != 1 or not attack.stages[0].chooses_iterate:
        raise UserError(
            f"the attack {attack.name!r} stops as soon as a sample is broken, but a diagnosis needs the image"
            " after the last step of an attack with one stage: use fgsm, cw or pgd-N, for example --attack pgd-10"
        )
    (stage,) = attack.stages
    return dataclasses.replace(stage, parameters={**stage.parameters, "iterate": "final"})


def final_images(classifier: ClassifierLike, batch: Batch, stage: Stage, *, batch_size: int) -> Tensor:
    """Return the image after the last step of a stage for each sample of a batch, projected into the threat model.

    The result is [B, 3, H, W] in [0, 1], in the dtype of the batch. Unlike an evaluation, this function also attacks
    samples that are misclassified without an attack. It also returns images that are still classified correctly.
    """
    if batch.threat.eps == 0:
        return batch.images
    keyed = dataclasses.replace(batch, keys=randomness.derive(batch.keys, stage.name))
    outcome = stage.run(as_classifier(classifier), keyed, batch_size)
    return project(batch.threat, batch.images, outcome.adversarial.detach().to(batch.images))


def measure_batch(classifier: ZeroShotClassifier, batch: Batch, stage: Stage) -> AttackedBatch:
    """Attack all samples of a batch together and measure their final images."""
    images = final_images(classifier, batch, stage, batch_size=len(batch.labels))
    norms, logits = gradient_norms(classifier, images, batch.labels)
    with torch.no_grad():
        features = classifier.image_features(images)
    return AttackedBatch(logits.argmax(dim=1) == batch.labels, norms, features)
