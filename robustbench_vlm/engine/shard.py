"""Shards: classifier, pictures, the attack with its gates, and one record a sample."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.oracle import MixedLogits
from robustbench_vlm.attacks.probes import PROBE_BACKWARD, PROBE_FORWARD, probe
from robustbench_vlm.attacks.stage import Attack, Batch, Logits
from robustbench_vlm.attacks.worst_case import WorstCase, attack_samples
from robustbench_vlm.datasets.dataset import image_sha256
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.estimate import Resources
from robustbench_vlm.errors import UserError
from robustbench_vlm.models.clip import Model, ZeroShotClassifier, load_model
from robustbench_vlm.models.device import exact_arithmetic
from robustbench_vlm.randomness import sample_keys
from robustbench_vlm.records import SampleResult


def run_shards(cells: Sequence[Cell], resources: Resources, shards: Sequence[Shard]) -> list[list[SampleResult]]:
    """Compute the records of shards whose cells differ in their data sets alone, each in the order of its samples.

    Pictures of one size are attacked together. Raises UserError where weights or pictures are no longer those that a
    cell's fingerprint was taken of.
    """
    with exact_arithmetic():
        parts = [_prepare(cells[shard.cell], shard, resources) for shard in shards]
        by_size: dict[torch.Size, list[int]] = {}
        for number, part in enumerate(parts):
            by_size.setdefault(part.batch.images.shape[1:], []).append(number)
        found: dict[int, list[SampleResult]] = {}
        for numbers in by_size.values():
            some = [parts[number] for number in numbers]
            found |= zip(numbers, _attack(some, cells[shards[0].cell].attack, resources), strict=True)
    return [found[number] for number in range(len(shards))]


@dataclass(frozen=True)
class _Part:
    """A shard made ready: its samples, and what is known of them before the attack."""

    classifier: ZeroShotClassifier
    batch: Batch
    about: Sequence[tuple[str, str, tuple[str, ...]]]
    """Id, digest of the pixels and raised gates of each sample."""


def _prepare(cell: Cell, shard: Shard, resources: Resources) -> _Part:
    classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, resources.device)
    _check_identity(cell, shard, loaded_model(cell.model, cell.track, resources.device).digest)
    batch, digests = load_batch(cell, shard.start, shard.stop, device=resources.device)
    raised = probe(classifier, batch, slots=resources.slots)
    ids = cell.samples.ids[shard.start : shard.stop]
    return _Part(classifier, batch, list(zip(ids, digests, raised, strict=True)))


def _attack(parts: Sequence[_Part], attack: Attack, resources: Resources) -> list[list[SampleResult]]:
    """Attack the samples of several shards at once and return each shard's records."""
    classifiers, batches = [part.classifier for part in parts], [part.batch for part in parts]
    batch = dataclasses.replace(
        batches[0],
        images=torch.cat([each.images for each in batches]),
        labels=torch.cat([each.labels for each in batches]),
        keys=torch.cat([each.keys for each in batches]),
        num_classes=torch.cat([each.num_classes for each in batches]),
    )
    verdict = attack_samples(_shared(classifiers, batches), batch, attack, slots=resources.slots)
    about = [each for part in parts for each in part.about]
    records = iter(_records(about, batch.labels, verdict, parts[0].classifier.scale))
    return [list(itertools.islice(records, len(part.about))) for part in parts]


def _shared(classifiers: Sequence[ZeroShotClassifier], batches: Sequence[Batch]) -> Logits:
    """Return one classifier for all samples, each with the classes of its own data set."""
    if all(classifier is classifiers[0] for classifier in classifiers):
        return classifiers[0]
    sizes = torch.tensor([len(classifier.text_features) for classifier in classifiers])
    first = (sizes.cumsum(0) - sizes).repeat_interleave(torch.tensor([len(batch.labels) for batch in batches]))
    features = torch.cat([classifier.text_features for classifier in classifiers])
    union = ZeroShotClassifier(classifiers[0].encoder, features, classifiers[0].scale)
    num_classes = torch.cat([batch.num_classes for batch in batches])
    return MixedLogits.of_ranges(union, first.to(num_classes.device), num_classes)


def load_batch(cell: Cell, start: int, stop: int, *, device: str) -> tuple[Batch, list[str]]:
    """Return the samples start to stop of a cell as the attack takes them, and the digests of their pixels.

    Raises UserError where a picture is not the one that the cell was planned with.
    """
    samples = cell.samples
    images = cell.dataset.open().read(samples.indices[start:stop])
    digests = [image_sha256(image) for image in images]
    for sample, planned, digest in zip(
        samples.ids[start:stop], samples.image_digests[start:stop], digests, strict=True
    ):
        if digest != planned:
            raise UserError(
                f"the image {sample!r} of {cell.dataset.name!r} is not the one that the run was planned with: the data"
                " changed, or this worker reads other data; give the command again"
            )
    labels = torch.tensor(samples.labels[start:stop], dtype=torch.int64).to(device)
    batch = Batch(
        images=(images.to(torch.float32) / 255).to(device),
        labels=labels,
        keys=sample_keys(cell.protocol.seed, cell.dataset.name, samples.ids[start:stop]).to(device),
        threat=cell.threat,
        num_classes=torch.full_like(labels, len(cell.dataset.classes)),
    )
    return batch, digests


@functools.lru_cache(maxsize=2)
def loaded_model(reference: str, track: str, device: str) -> Model:
    """Return a model on a device, loaded once a process."""
    model = load_model(reference, track)
    model.network.to(device)
    return model


@functools.lru_cache(maxsize=16)
def classifier_of(reference: str, track: str, prompts: tuple[str, ...], device: str) -> ZeroShotClassifier:
    """Return the classifier of a model and prompts on a device, built once a process."""
    return loaded_model(reference, track, device).classifier(prompts).to(device)


def _check_identity(cell: Cell, shard: Shard, weights: str) -> None:
    if weights != cell.weights:
        raise UserError(
            f"the weights of {cell.model_name!r} changed while the run was under way: give the command again, and the"
            " new weights get cells of their own"
        )
    # Fresh copies: a digest that travelled with the cell proves nothing about this process.
    recomputed = dataclasses.replace(cell, samples=dataclasses.replace(cell.samples)).fingerprint
    if recomputed != shard.fingerprint:
        raise UserError(
            f"this worker computes another fingerprint for {cell.label}: it runs another version of robustbench_vlm"
            " than the one that planned; install the same version everywhere"
        )


def _records(
    samples: Sequence[tuple[str, str, tuple[str, ...]]], labels: Tensor, verdict: WorstCase, scale: float
) -> list[SampleResult]:
    return [
        SampleResult(
            sample_id=sample_id,
            image_sha256=digest,
            label=int(labels[n]),
            clean_prediction=int(verdict.clean_prediction[n]),
            adversarial_prediction=int(verdict.adversarial_prediction[n]),
            broken_by=verdict.broken_by[n],
            distance=float(verdict.distance[n]),
            forward=int(verdict.forward[n]) + PROBE_FORWARD,
            backward=int(verdict.backward[n]) + PROBE_BACKWARD,
            margin=float(verdict.margin[n]) / scale,
            warnings=",".join(dict.fromkeys([*found, *verdict.notes[n]])),
        )
        for n, (sample_id, digest, found) in enumerate(samples)
    ]
