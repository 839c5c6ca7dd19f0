"""Compute adversarial images with the attacks of a plan. Write them to files and read them without loss of precision.

A file has the safetensors format with one tensor "images", float32 [N, 3, H, W] in [0, 1]. Readers also accept other
float types in [0, 1], and uint8 in [0, 255]. The metadata "track" is the name of the track. The metadata "samples" is a
JSON list of N pairs [dataset, sample id]. Pixels are not rounded, because rounding to 8 bits makes an attack at eps =
1/255 weaker.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of, write_whole
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import Attacked, attack_group, attack_shards
from robustbench_vlm.engine.shard_groups import ShardGroup, missing_groups
from robustbench_vlm.engine.store import Finished

_Sendable = list[tuple[Sequence[SampleResult], "np.typing.NDArray[np.float32]"]]
"""The results that a worker process sends back for one group of samples. A cell is one model under one attack on one
dataset at one radius. A shard is a set of B consecutive samples of a cell. For each shard, the list has a pair: the
records of the samples, and their adversarial images, float32 [B, 3, H, W] in [0, 1].

The images are sent as numpy arrays. Torch tensors would be sent through shared memory, which is small in containers.
"""
_MAX_BYTES = 2**24
"""Largest size of the list of samples in bytes. A list of 100,000 samples has a few megabytes."""
_ADVICE = "write [dataset, id] for each image"
_FORMAT = (
    'the file must contain a tensor "images" [N, 3, H, W] in [0, 1] and the metadata "track" and "samples".'
    ' "samples" is a list of N pairs [dataset, id]. Write the file with'
    " robustbench_vlm.analysis.adversarial_images.write_images"
)


@dataclass(frozen=True)
class AdversarialImages:
    """Adversarial images for samples from the datasets of a track."""

    track: str
    samples: tuple[tuple[str, str], ...]
    """Dataset name and sample id of each of the N images."""
    images: Tensor
    """float32 [N, 3, H, W] in [0, 1]."""


def images_bytes(found: AdversarialImages) -> bytes:
    """Return the content of a file of adversarial images. Equal images give equal bytes."""
    from safetensors.torch import save

    content = save({"images": found.images.contiguous()}, {"track": found.track, "samples": json.dumps(found.samples)})
    # safetensors writes the metadata in a random order, so the header is written again in a fixed order. A file starts
    # with the length of the header, 8 bytes, and the header is padded with spaces to a multiple of 8 bytes.
    end = 8 + int.from_bytes(content[:8], "little")
    values = read_json(content[8:end].decode(), "the header", max_bytes=end)
    header = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def write_images(found: AdversarialImages, path: Path) -> None:
    """Write adversarial images to a file. An interrupted write leaves no partial file."""
    content = images_bytes(found)
    write_whole(path, lambda partial: partial.write_bytes(content))


def read_images(path: Path) -> tuple[AdversarialImages, str]:
    """Read a file of adversarial images and return the images and the sha256 of the file.

    Images are converted to float32. Raises UserError if the file cannot be read or has another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            images = file.get_tensor("images")
        about = "the list of samples"
        pairs = read_json(metadata["samples"], about, max_bytes=_MAX_BYTES, max_depth=2, advice=_ADVICE)
        samples = tuple(validate(list[tuple[str, str]], pairs, about, advice=_ADVICE))
        track = metadata["track"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a file of adversarial images ({error}): {_FORMAT}") from error
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise UserError(f"{path} has images of dtype {str(images.dtype).removeprefix('torch.')}: {_FORMAT}")
    if images.dim() != 4 or images.shape[1] != 3 or len(samples) != len(images) or images.numel() == 0:
        raise UserError(f"{path} has {len(samples)} samples and images of shape {tuple(images.shape)}: {_FORMAT}")
    if len(set(samples)) < len(samples):
        raise UserError(f"{path} has several images of the same sample: submit only one image of each sample")
    pixels = images.to(torch.float64) / 255 if images.dtype == torch.uint8 else images.to(torch.float64)
    if not bool(torch.isfinite(pixels).all()) or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise UserError(f"{path} has pixels outside [0, 1]: {_FORMAT}")
    return AdversarialImages(track, samples, pixels.to(torch.float32)), sha256_of(path)


def attack_cells(plan: Plan, on_attacked: Callable[[int, Cell], None]) -> list[Attacked]:
    """Attack every sample of a plan and return the records and images of each cell, on the CPU.

    A cell is one model under one attack on one dataset at one radius. The records are those that a new run would
    write, but this function does not read or write files. All images are in memory at the same time. Samples are
    attacked in groups. After each group, the function `on_attacked` is called. Its arguments are the number of samples
    in the group and a cell of the group.
    """
    cells, resources = plan.cells, plan.request.resources
    groups = missing_groups(cells, [Finished((), ())] * len(cells), resources)
    engine: Engine = ENGINES.load(resources.engine)
    found: list[dict[int, Attacked]] = [{} for _ in cells]
    function = functools.partial(_attack, cells, resources)
    with contextlib.closing(engine.run_jobs(function, groups, resources)) as answers:
        for group, sent in answers:
            for shard, (results, images) in zip(group.shards, sent, strict=True):
                found[shard.cell][shard.start] = Attacked(results, torch.from_numpy(images))
            on_attacked(len(group), cells[group.shards[0].cell])
    return [joined([parts[start] for start in sorted(parts)]) for parts in found]


def attack_positions(cell: Cell, positions: Sequence[int], resources: Resources) -> Attacked:
    """Attack the samples at the given positions of a cell (one model, attack, dataset and radius) in this process.

    `resources` must be a result of `engine.backends.resolve_resources`.
    """
    shards = [Shard(0, position, position + 1, cell.fingerprint) for position in positions]
    return joined(attack_shards([cell], resources, shards))


def joined(parts: Sequence[Attacked]) -> Attacked:
    """Join attacked samples into one `Attacked`, with the images on the CPU."""
    results = [result for part in parts for result in part.results]
    return Attacked(results, torch.cat([part.images for part in parts]).cpu())


def _attack(cells: Sequence[Cell], resources: Resources, group: ShardGroup) -> _Sendable:
    return [(attacked.results, attacked.images.cpu().numpy()) for attacked in attack_group(cells, resources, group)]
