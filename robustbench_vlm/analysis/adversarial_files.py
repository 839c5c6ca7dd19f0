"""Adversarial images as files, lossless: what a dispute hands in, and what `transfer --save` writes.

A safetensors file with one tensor "images", (N, 3, H, W) in [0, 1] as float32 (float64 and float16 are taken as they
are, uint8 as 255ths), and the metadata "track" and "samples": a JSON list of N pairs [dataset, sample id]. At
eps = 1/255 a format that rounds is a weaker attack, so nothing is rounded.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of, write_whole

_WHAT = 'it must hold one tensor "images" (N, 3, H, W), and as metadata "track" and N pairs [dataset, id] as "samples"'


@dataclass(frozen=True)
class AdversarialImages:
    """Adversarial images of named samples of a track."""

    track: str
    samples: tuple[tuple[str, str], ...]
    """Dataset and sample id of each."""
    images: Tensor
    """float32 (N, 3, H, W) in [0, 1]."""


def images_bytes(found: AdversarialImages) -> bytes:
    """Return the bytes of a file of adversarial images; equal images give equal bytes."""
    from safetensors.torch import save

    return save({"images": found.images.contiguous()}, {"track": found.track, "samples": json.dumps(found.samples)})


def write_images(found: AdversarialImages, path: Path) -> None:
    """Write adversarial images whole or not at all."""
    content = images_bytes(found)
    write_whole(path, lambda partial: partial.write_bytes(content))


def read_images(path: Path) -> tuple[AdversarialImages, str]:
    """Return a file's adversarial images and its sha256; raise UserError for anything that is not such a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            images = file.get_tensor("images")
        pairs = json.loads(metadata["samples"])
        samples = tuple((str(dataset), str(sample)) for dataset, sample in pairs)
        track = metadata["track"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no file of adversarial images ({error}): {_WHAT}") from error
    if images.dim() != 4 or images.shape[1] != 3 or len(samples) != len(images) or len(images) == 0:
        raise UserError(f"{path} has {len(samples)} samples and images of shape {tuple(images.shape)}: {_WHAT}")
    if len(set(samples)) < len(samples):
        raise UserError(f"{path} has a sample twice: hand in the best image of each")
    pixels = images.to(torch.float64) / 255 if images.dtype == torch.uint8 else images.to(torch.float64)
    if not bool(torch.isfinite(pixels).all()) or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise UserError(f"{path} has pixels outside [0, 1]: {_WHAT}")
    return AdversarialImages(track, samples, pixels.to(torch.float32)), sha256_of(path)
