"""Compute shards: load the classifier and the images, attack the samples, and return their records.

A shard is a range of samples of one cell. A group is several shards that one worker computes together
(`engine.shard_groups`).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.eot import DrawVerdicts, attack_over_draws, random_classifier
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.model import MultiDatasetClassifier
from robustbench_vlm.attacks.other_sample_start import CANDIDATES, needs_other_images, with_other_images
from robustbench_vlm.attacks.sanity import BATCH_TOLERANCE, REPEAT_TOLERANCE, sanity_cost, sanity_warnings
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.records import DrawnResult, SampleResult
from robustbench_vlm.datasets.base import image_sha256
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.model_cache import AnyClassifier, loaded_model, precise_classifier
from robustbench_vlm.engine.resources import Resources, with_fitting_batch_size
from robustbench_vlm.engine.shard_groups import ShardGroup
from robustbench_vlm.models.classifier import ZeroShotClassifier
from robustbench_vlm.models.precision import PRECISIONS, arithmetic

MEASURED_SAMPLES = 32
"""Number of samples with which the memory and speed of a model are measured."""
_fitting: dict[tuple[str, str], int] = {}
"""Batch sizes that fit into memory, for each model and device. A size is added after a larger batch has run out of
memory.
"""
_ROUNDINGS = 8
"""Tolerance for differences between two outputs for the same image, as a multiple of the rounding error of the lowest
precision in use."""


@dataclass(frozen=True)
class Attacked:
    """The records and adversarial images of attacked samples, in the order of the samples."""

    results: Sequence[SampleResult]
    images: Tensor
    """The strongest image that was found for each sample (`Verdicts.strongest`), float32 [B, 3, H, W]."""


def attack_shards(cells: Sequence[Cell], resources: Resources, shards: Sequence[Shard]) -> list[Attacked]:
    """Attack the samples of shards and return one result per shard, in the order of the shards.

    All cells must have one model, attack and eps. Only their datasets may differ. Images of equal size are attacked
    together. Raises UserError if weights or images have changed since the fingerprints of the cells were computed.
    """
    with arithmetic(cells[shards[0].cell].protocol.precision):
        parts = [_prepare(cells[shard.cell], shard, resources) for shard in shards]
        by_size: dict[torch.Size, list[int]] = {}
        for number, part in enumerate(parts):
            by_size.setdefault(part.batch.images.shape[1:], []).append(number)
        found: dict[int, Attacked] = {}
        for numbers in by_size.values():
            some = [parts[number] for number in numbers]
            found |= zip(numbers, _attack(some, cells[shards[0].cell], resources), strict=True)
    return [found[number] for number in range(len(shards))]


@dataclass(frozen=True)
class _Part:
    """The classifiers and samples of one shard, ready for the attack."""

    classifier: AnyClassifier
    """The classifier that is attacked."""
    judge: AnyClassifier
    """The classifier that decides whether a sample is broken. It has another precision than `classifier` if the
    protocol sets two precisions.
    """
    batch: Batch
    about: Sequence[tuple[str, str, tuple[str, ...]]]
    """For each sample, its id, the digest of its pixels, and the warnings from the output checks."""


def _prepare(cell: Cell, shard: Shard, resources: Resources) -> _Part:
    """Load the classifiers and the samples of a shard, and run the gradient and output checks."""
    about = cell.model, cell.track, cell.dataset.prompts, resources.device
    protocol = cell.protocol
    classifier, judge = (
        precise_classifier(*about, name, protocol.logit_precision)
        for name in (protocol.precision, protocol.verdict_precision)
    )
    _check_identity(cell, shard, loaded_model(cell.model, cell.track, resources.device).digest)
    batch, digests = load_batch(cell, shard.start, shard.stop, device=resources.device)
    if needs_other_images(cell.attack):
        first, _ = load_batch(cell, 0, min(CANDIDATES, len(cell)), device=resources.device)
        batch = with_other_images(batch, first.images, first.labels)
    rounding = max(PRECISIONS[name].rounding for name in (protocol.precision, protocol.logit_precision))
    attacked: Classifier = classifier.of_samples(batch.keys)
    if protocol.draws > 1:
        attacked = random_classifier(attacked, batch.keys)
    batch_size = _batch_size(classifier, resources)
    raised = sanity_warnings(
        attacked,
        batch,
        batch_size=batch_size,
        batch_tolerance=max(BATCH_TOLERANCE, _ROUNDINGS * rounding),
        repeat_tolerance=max(REPEAT_TOLERANCE, _ROUNDINGS * rounding),
    )
    ids = cell.samples.ids[shard.start : shard.stop]
    return _Part(classifier, judge, batch, list(zip(ids, digests, raised, strict=True)))


def _attack(parts: Sequence[_Part], cell: Cell, resources: Resources) -> list[Attacked]:
    """Attack the samples of several shards together and return the result of each shard.

    `cell` is the cell of one of the shards. The cells of the other shards have the same attack and protocol.
    """
    batches = [part.batch for part in parts]
    others = [batch.other_images for batch in batches if batch.other_images is not None]
    attacked = _shared([part.classifier for part in parts], batches)
    is_judged_apart = any(part.judge is not part.classifier for part in parts)
    judge = _shared([part.judge for part in parts], batches) if is_judged_apart else None
    batch = dataclasses.replace(
        batches[0],
        images=torch.cat([each.images for each in batches]),
        labels=torch.cat([each.labels for each in batches]),
        keys=torch.cat([each.keys for each in batches]),
        num_classes=torch.cat([each.num_classes for each in batches]),
        other_images=torch.cat(others) if others else None,
    )
    batch_size = _batch_size(parts[0].classifier, resources)
    drawn: DrawVerdicts | None = None
    draws, eot = cell.protocol.draws, cell.protocol.eot
    if draws > 1:
        random = random_classifier(attacked, batch.keys)
        drawn = attack_over_draws(random, batch, cell.attack, draws=draws, eot=eot, batch_size=batch_size)
        verdict = drawn.verdicts
    else:
        verdict = attack_samples(attacked, batch, cell.attack, batch_size=batch_size, judge=judge)
    about = [each for part in parts for each in part.about]
    spent = sanity_cost(attacked)
    rows = _records(about, batch.labels, verdict, spent, parts[0].classifier.scale)
    records = iter(rows if drawn is None else _drawn_records(rows, drawn, draws))
    sizes = [len(part.about) for part in parts]
    images = verdict.strongest.split(sizes)
    return [Attacked(list(itertools.islice(records, size)), own) for size, own in zip(sizes, images, strict=True)]


def _batch_size(classifier: AnyClassifier, resources: Resources) -> int:
    """Return the batch size in samples.

    A test-time defense may classify several images for each sample. The batch is then smaller.
    """
    return max(1, resources.batch_size // classifier.images_per_sample)


def _shared(classifiers: Sequence[AnyClassifier], batches: Sequence[Batch]) -> Classifier:
    """Return one classifier for several datasets. Each sample gets logits for the classes of its own dataset."""
    if all(classifier is classifiers[0] for classifier in classifiers):
        return classifiers[0].of_samples(torch.cat([batch.keys for batch in batches]))
    plain = [classifier.plain for classifier in classifiers]
    sizes = torch.tensor([len(classifier.text_features) for classifier in plain])
    first = (sizes.cumsum(0) - sizes).repeat_interleave(torch.tensor([len(batch.labels) for batch in batches]))
    features = torch.cat([classifier.text_features for classifier in plain])
    union = ZeroShotClassifier(plain[0].encoder, features, plain[0].scale, plain[0].logits)
    num_classes = torch.cat([batch.num_classes for batch in batches])
    return MultiDatasetClassifier.of_ranges(union, first.to(num_classes.device), num_classes)


def load_batch(cell: Cell, start: int, stop: int, *, device: str) -> tuple[Batch, list[str]]:
    """Load the samples `start` to `stop` (exclusive) of a cell.

    Return a batch on the device, with images float32 [B, 3, H, W] in [0, 1]. Also return the sha256 digest of each
    image's uint8 pixels. Raises UserError if an image has changed since the cell was resolved.
    """
    samples = cell.samples
    images = cell.dataset.open().read(samples.indices[start:stop])
    digests = [image_sha256(image) for image in images]
    for sample, planned, digest in zip(
        samples.ids[start:stop], samples.image_digests[start:stop], digests, strict=True
    ):
        if digest != planned:
            raise UserError(
                f"the image {sample!r} of {cell.dataset.name!r} has changed since the start of the run, or this worker"
                " reads a different copy of the dataset: run the same command again, with the same data on all machines"
            )
    labels = torch.tensor(samples.labels[start:stop], dtype=torch.int64).to(device)
    batch = Batch(
        images=_moved(images, device).to(torch.float32) / 255,
        labels=labels,
        keys=sample_keys(cell.protocol.seed, cell.dataset.name, samples.ids[start:stop]).to(device),
        threat=cell.threat,
        num_classes=torch.full_like(labels, len(cell.dataset.classes)),
    )
    return batch, digests


def _moved(images: Tensor, device: str) -> Tensor:
    """Move uint8 images [B, 3, H, W] to a device. Pinned memory makes the copy to a GPU faster."""
    return images.pin_memory().to(device, non_blocking=True) if device == "cuda" else images.to(device)


def cell_classifier(cell: Cell, device: str) -> AnyClassifier:
    """Return the attacked classifier of a cell. The protocol of the cell sets its precision."""
    protocol = cell.protocol
    about = cell.model, cell.track, cell.dataset.prompts, device
    return precise_classifier(*about, protocol.precision, protocol.logit_precision)


def _check_identity(cell: Cell, shard: Shard, weights: str) -> None:
    """Raise UserError if the weights or the fingerprint differ from the plan."""
    if weights != cell.weights:
        raise UserError(
            f"the weights of {cell.model_name!r} have changed since the start of the run: run the same command again"
            " to evaluate the new weights"
        )
    # The copies have no cached digests, so this process computes the digests again.
    recomputed = dataclasses.replace(cell, samples=dataclasses.replace(cell.samples)).fingerprint
    if recomputed != shard.fingerprint:
        raise UserError(
            f"this worker computes a different fingerprint for {cell.label} than the process that started the run:"
            " install the same version of robustbench_vlm on all machines"
        )


def _records(
    samples: Sequence[tuple[str, str, tuple[str, ...]]],
    labels: Tensor,
    verdict: Verdicts,
    check_passes: tuple[int, int],
    scale: float,
) -> list[SampleResult]:
    """Return one record per sample. `check_passes` is (forward passes, backward passes) of the output checks."""
    return [
        SampleResult(
            sample_id=sample_id,
            image_sha256=digest,
            label=int(labels[n]),
            clean_prediction=int(verdict.clean_prediction[n]),
            adversarial_prediction=int(verdict.adversarial_prediction[n]),
            broken_by=verdict.broken_by[n],
            distance=float(verdict.distance[n]),
            forward=int(verdict.forward[n]) + check_passes[0],
            backward=int(verdict.backward[n]) + check_passes[1],
            margin=float(verdict.margin[n]) / scale,
            warnings=",".join(dict.fromkeys([*found, *verdict.warnings[n]])),
        )
        for n, (sample_id, digest, found) in enumerate(samples)
    ]


def _drawn_records(records: Sequence[SampleResult], drawn: DrawVerdicts, draws: int) -> list[SampleResult]:
    """Return the records with the numbers of fresh draws that predict the label."""
    counts = zip(drawn.clean_right.tolist(), drawn.right.tolist(), strict=True)
    return [
        DrawnResult(**vars(record), draws=draws, clean_right=clean_right, right=right)
        for record, (clean_right, right) in zip(records, counts, strict=True)
    ]


def run_group(cells: Sequence[Cell], resources: Resources, group: ShardGroup) -> list[list[SampleResult]]:
    """Attack the shards of a group with `attack_group`, and return only the records."""
    return [list(attacked.results) for attacked in attack_group(cells, resources, group)]


def attack_group(cells: Sequence[Cell], resources: Resources, group: ShardGroup) -> list[Attacked]:
    """Attack the samples of a group with `attack_shards`.

    If memory runs out, the batch size is halved. Later groups of this model in this process use the smaller batch size
    too.
    """
    model = cells[group.shards[0].cell].model, resources.device
    batch_size = min(resources.batch_size, _fitting.get(model, resources.batch_size))
    results, fitted = with_fitting_batch_size(
        lambda fewer: attack_shards(cells, dataclasses.replace(resources, batch_size=fewer), group.shards), batch_size
    )
    if fitted < batch_size:
        _fitting[model] = fitted
    return results
