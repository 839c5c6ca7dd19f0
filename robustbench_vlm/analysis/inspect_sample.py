"""Inspect one sample under attack: clean and adversarial images, and the predictions of each model for them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.analysis.adversarial_images import attack_positions
from robustbench_vlm.analysis.verdict import verdict_logits
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.projections import distance
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell import Cell, Samples
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import load_batch

TOP = 5
"""Number of classes that are shown for an image."""


@dataclass(frozen=True)
class Predicted:
    """A class and its predicted probability."""

    name: str
    probability: float
    """Softmax of the logits, in [0, 1]. The logits have the model's own scale."""


@dataclass(frozen=True)
class SampleUnderModel:
    """Record, predictions and adversarial image of one sample, for one model."""

    model: str
    result: SampleResult
    """The record that a run would write for the sample."""
    distance: float
    """Size of the perturbation in `image`, in the norm of the threat model, for pixels in [0, 1]."""
    clean: tuple[Predicted, ...]
    """Predictions for the clean image: all classes, the most probable first."""
    adversarial: tuple[Predicted, ...]
    """Predictions for `image`: all classes, the most probable first."""
    image: Tensor
    """The adversarial image, float32 [3, H, W] in [0, 1]. For a misclassified clean image, it is the clean image. For a
    robust sample, it is the image with the smallest margin that the attack found.
    """

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document with the `TOP` most probable classes of each image and without the images."""
        tops = {"clean": plain(self.clean[:TOP]), "adversarial": plain(self.adversarial[:TOP])}
        return {"model": self.model, "distance": self.distance, **tops, "record": plain(self.result)}


@dataclass(frozen=True)
class SampleView:
    """One sample of a dataset under one attack on several models."""

    track: str
    protocol: str
    dataset: str
    sample_id: str
    position: int
    """Index of the sample among the samples of the protocol, starting from 0."""
    label: str
    """Name of the true class."""
    attack: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    image: Tensor
    """The clean image, float32 [3, H, W] in [0, 1]."""
    models: tuple[SampleUnderModel, ...]

    @property
    def magnification(self) -> float:
        """Factor that scales the largest change of a pixel in any adversarial image to 0.5."""
        largest = max(float((each.image - self.image).abs().max()) for each in self.models)
        return 0.5 / largest if largest else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document without the images."""
        names = ("track", "protocol", "dataset", "sample_id", "position", "label", "attack", "norm", "eps")
        values = {name: getattr(self, name) for name in names}
        return {**values, "magnification": self.magnification, "models": [each.to_json() for each in self.models]}


def inspect_sample(request: Request, sample: str, *, on_progress: OnProgress = ignore_progress) -> SampleView:
    """Attack one sample on each model of a request. The request must have one dataset, one attack and one radius.

    `sample` is a sample id, or an index among the samples of the protocol, starting from 0. Raises UserError
    if the request is invalid or the sample is unknown.
    """
    plan = resolve(request)
    assert len({(cell.dataset.name, cell.attack.name, cell.threat) for cell in plan.cells}) == 1
    first = plan.cells[0]
    position = _position(first.samples, sample, first.dataset.name)
    seconds = 0.0 if on_progress is ignore_progress else estimate_cost(plan).seconds_most
    models: list[SampleUnderModel] = []
    batch, _ = load_batch(first, position, position + 1, device="cpu")
    for number, cell in enumerate(plan.cells):
        left = seconds / plan.samples * (len(plan.cells) - number)
        on_progress(Progress(number, len(plan.cells), left, cell.model_name))
        models.append(_under(cell, position, batch, plan.request.resources))
    on_progress(Progress(len(plan.cells), len(plan.cells)))
    return SampleView(
        track=plan.track.name,
        protocol=plan.protocol.label,
        dataset=first.dataset.name,
        sample_id=first.samples.ids[position],
        position=position,
        label=first.dataset.classes[first.samples.labels[position]],
        attack=first.attack.name,
        norm=first.threat.norm,
        eps=first.threat.eps_text,
        image=batch.images[0],
        models=tuple(models),
    )


def _under(cell: Cell, position: int, batch: Batch, resources: Resources) -> SampleUnderModel:
    attacked = attack_positions(cell, [position], resources)
    clean, adversarial = (
        verdict_logits(cell, batch.keys, images, device=resources.device)[0]
        for images in (batch.images, attacked.images)
    )
    return SampleUnderModel(
        model=cell.model_name,
        result=attacked.results[0],
        distance=float(distance(cell.threat, batch.images, attacked.images)[0]),
        clean=_predicted(cell, clean),
        adversarial=_predicted(cell, adversarial),
        image=attacked.images[0],
    )


def _predicted(cell: Cell, logits: Tensor) -> tuple[Predicted, ...]:
    shares, order = torch.sort(logits.double().softmax(dim=0), descending=True, stable=True)
    pairs = zip(order.tolist(), shares.tolist(), strict=True)
    return tuple(Predicted(cell.dataset.classes[place], share) for place, share in pairs)


def _position(samples: Samples, text: str, dataset: str) -> int:
    if text in samples.ids:
        return samples.ids.index(text)
    if text.isdecimal() and int(text) < len(samples.ids):
        return int(text)
    raise UserError(
        f"unknown sample {text!r} of {dataset!r}: give an id such as {samples.ids[0]!r}, or a number below"
        f" {len(samples.ids)}; add --samples all to choose from all samples of the dataset"
    )
