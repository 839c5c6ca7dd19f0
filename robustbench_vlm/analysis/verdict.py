"""The judge: what a cell's model says of images, in one forward pass each, as the harness's own verdicts are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.model import logits_in_batches
from robustbench_vlm.attacks.projections import distance, project
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import classifier_of, precise_classifier
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.precision import arithmetic

_AT_ONCE = 64


def clean_predictions(cell: Cell, *, device: str) -> list[tuple[int, float]]:
    """Return every clean sample's prediction, and by how much it leads as a cosine, in the order of a cell."""
    found: list[tuple[int, float]] = []
    for start in range(0, len(cell), _AT_ONCE):
        batch, _ = load_batch(cell, start, min(start + _AT_ONCE, len(cell)), device=device)
        logits = verdict_logits(cell, batch.keys, batch.images, device=device)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        scale = classifier_of(cell.model, cell.track, cell.dataset.prompts, device).scale
        found += zip(logits.argmax(dim=1).tolist(), ((first - second) / scale).tolist(), strict=True)
    return found


def judge(
    cell: Cell, position: int, adversarial: Tensor, threats: Sequence[Threat], *, device: str
) -> tuple[Threat, float, int] | None:
    """Judge an adversarial image (3, H, W) of the sample at a position, with the least of the threats that allows it.

    Returns that threat, the size of the perturbation once it is projected, and the prediction; None where the image is
    outside all of them, by more than float32 rounds, or has another size than the sample.
    """
    batch, _ = load_batch(cell, position, position + 1, device=device)
    image = adversarial.to(device, torch.float32)[None]
    if image.shape != batch.images.shape:
        return None
    for threat in sorted(threats, key=lambda each: each.eps):
        if float(distance(threat, batch.images, image)) <= float(threat.eps) * (1 + 1e-5) + 1e-7:
            inside = project(threat, batch.images, image)
            size = float(distance(threat, batch.images, inside))
            return threat, size, _predicted(cell, batch, inside, device)[0]
    return None


def verdict_logits(cell: Cell, keys: Tensor, images: Tensor, *, device: str) -> Tensor:
    """Return the logits (B, C), on the CPU, that a cell's verdicts on images (B, 3, H, W) are made by.

    The images may be of any origin: they are taken for those of the samples that have these `keys` (B,).
    """
    protocol = cell.protocol
    about = cell.model, cell.track, cell.dataset.prompts, device
    classifier = precise_classifier(*about, protocol.verdict_precision, protocol.logit_precision)
    batch_size = max(1, _AT_ONCE // classifier.images_per_sample)
    with arithmetic(protocol.precision):
        return logits_in_batches(classifier.of_samples(keys.to(device)), images.to(device), batch_size).cpu()


def _predicted(cell: Cell, batch: Batch, images: Tensor, device: str) -> list[int]:
    found: list[int] = verdict_logits(cell, batch.keys, images, device=device).argmax(dim=1).tolist()
    return found
