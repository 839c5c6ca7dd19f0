"""Classify given images with the model of a cell, in the precision that the protocol sets for verdicts.

A cell is one model under one attack on one dataset at one radius.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import logits_in_batches
from robustbench_vlm.attacks.projections import distance, project
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import classifier_of, precise_classifier
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.precision import arithmetic

_BATCH_SIZE = 64


def clean_predictions(cell: Cell, *, device: str) -> list[tuple[int, float]]:
    """Return the predicted class and its margin for every clean sample of a cell.

    The margin is the cosine similarity of the predicted class minus the second-highest cosine similarity.
    """
    found: list[tuple[int, float]] = []
    for start in range(0, len(cell), _BATCH_SIZE):
        batch, _ = load_batch(cell, start, min(start + _BATCH_SIZE, len(cell)), device=device)
        logits = verdict_logits(cell, batch.keys, batch.images, device=device)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        scale = classifier_of(cell.model, cell.track, cell.dataset.prompts, device).scale
        found += zip(logits.argmax(dim=1).tolist(), ((first - second) / scale).tolist(), strict=True)
    return found


def image_margins(cell: Cell, start: int, images: Tensor, *, device: str) -> list[float]:
    """Return the margin of each image, as a difference of cosine similarities.

    `images` has one image for each of B consecutive samples of the cell from the index `start` on, float [B, 3, H, W]
    in [0, 1]. The margin is the similarity to the correct class minus the largest other similarity. It is negative for
    misclassified images.
    """
    samples, stop = cell.samples, start + len(images)
    keys = sample_keys(cell.protocol.seed, cell.dataset.name, samples.ids[start:stop])
    logits = verdict_logits(cell, keys, images, device=device)
    labels = torch.tensor(samples.labels[start:stop], dtype=torch.int64)
    scale = classifier_of(cell.model, cell.track, cell.dataset.prompts, device).scale
    found: list[float] = (-margin(logits, labels, labels) / scale).tolist()
    return found


def judge_image(
    cell: Cell, position: int, adversarial: Tensor, threats: Sequence[Threat], *, device: str
) -> tuple[Threat, float, int] | None:
    """Classify an adversarial image of the sample at `position`.

    `adversarial` is float [3, H, W] in [0, 1]. The function first chooses a threat model: the one of `threats` with the
    smallest radius that is at least the size of the perturbation. Then it projects the image into this threat model and
    classifies it. Returns the threat model, the size of the projected perturbation, and the predicted class. Returns
    None if the perturbation is larger than all radii, or if the image and the sample differ in size.
    """
    batch, _ = load_batch(cell, position, position + 1, device=device)
    image = adversarial.to(device, torch.float32)[None]
    if image.shape != batch.images.shape:
        return None
    for threat in sorted(threats, key=lambda each: each.eps):
        if float(distance(threat, batch.images, image)) <= float(threat.eps) * (1 + 1e-5) + 1e-7:
            inside = project(threat, batch.images, image)
            size = float(distance(threat, batch.images, inside))
            return threat, size, int(verdict_logits(cell, batch.keys, inside, device=device).argmax())
    return None


def verdict_logits(cell: Cell, keys: Tensor, images: Tensor, *, device: str) -> Tensor:
    """Return the logits of a cell's model for images, computed in the precision of verdicts, float32 [B, C] on the CPU.

    `images` are float [B, 3, H, W] in [0, 1]. `keys`, int64 [B], has the seed of the random
    numbers for each image. Only test-time defenses draw random numbers.
    """
    protocol = cell.protocol
    about = cell.model, cell.track, cell.dataset.prompts, device
    classifier = precise_classifier(*about, protocol.verdict_precision, protocol.logit_precision)
    batch_size = max(1, _BATCH_SIZE // classifier.images_per_sample)
    with arithmetic(protocol.precision):
        return logits_in_batches(classifier.of_samples(keys.to(device)), images.to(device), batch_size).cpu()
