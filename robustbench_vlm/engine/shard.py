"""One shard: classifier, pictures, the attack with its gates, and one record a sample."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.probes import PROBE_BACKWARD, PROBE_FORWARD, probe
from robustbench_vlm.attacks.stage import Batch
from robustbench_vlm.attacks.worst_case import WorstCase, attack_samples
from robustbench_vlm.datasets.dataset import image_sha256
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.estimate import Resources
from robustbench_vlm.errors import UserError
from robustbench_vlm.models.clip import Model, ZeroShotClassifier, load_model
from robustbench_vlm.randomness import sample_keys
from robustbench_vlm.records import SampleResult


def run_shard(
    cells: Sequence[Cell], resources: Resources, shard: Shard, encoder: nn.Module | None = None
) -> list[SampleResult]:
    """Compute the records of a shard, in the order of its samples.

    The attack goes through `encoder` where one is given, which stands for the model's own. Raises UserError where
    weights or pictures are no longer those that the cell's fingerprint was taken of.
    """
    cell = cells[shard.cell]
    with exact_arithmetic():
        classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, resources.device)
        _check_identity(cell, shard, loaded_model(cell.model, cell.track, resources.device).digest)
        batch, digests = load_batch(cell, shard.start, shard.stop, device=resources.device)
        found = probe(classifier, batch, slots=resources.slots)
        if encoder is not None:
            classifier = ZeroShotClassifier(encoder, classifier.text_features, classifier.scale)
        verdict = attack_samples(classifier, batch, cell.attack, slots=resources.slots)
    ids = cell.samples.ids[shard.start : shard.stop]
    return _records(list(zip(ids, digests, found, strict=True)), batch.labels, verdict, classifier.scale)


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
    batch = Batch(
        images=(images.to(torch.float32) / 255).to(device),
        labels=torch.tensor(samples.labels[start:stop], dtype=torch.int64).to(device),
        keys=sample_keys(cell.protocol.seed, cell.dataset.name, samples.ids[start:stop]).to(device),
        threat=cell.threat,
        num_classes=len(cell.dataset.classes),
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


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch TF32 off, which would round every product of a float32 network to ten bits, and put it back after."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark
    matmul.allow_tf32 = convolution.allow_tf32 = convolution.benchmark = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32, convolution.benchmark = before


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
