"""Weights are data: fetched once, always against a digest, finite, and never code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.core.download import download, hub_url
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, inside, sha256_of, write_text
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.models.card import Weights
from robustbench_vlm.models.checkpoint_files import read_checkpoint
from robustbench_vlm.models.checkpoint_formats import Towers, towers_of

_HUB = "hf:"


def load_weights(folder: Path, weights: Weights) -> dict[str, Tensor]:
    """Return the tensors by name of a file beside its card.

    Raises UserError where the file is missing, is another one than its digest says, is damaged, holds code, or has
    weights that are not finite.
    """
    path, _ = locate(folder, weights)
    tensors = read_checkpoint(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"the weights {path} are not a mapping of names to tensors: save the state dict as safetensors")
    check_finite(path, tensors)
    return tensors


def load_towers(path: Path, layout: str = "") -> Towers:
    """Return the towers in a checkpoint of any known layout; raise UserError as `load_weights` and `towers_of` do."""
    content = read_checkpoint(path)
    try:
        towers = towers_of(content, layout)
    except UserError as error:
        raise UserError(f"the weights {path}: {error}") from error
    check_finite(path, {**towers.image, **towers.text})
    return towers


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError where a tensor has NaN or infinite numbers."""
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"the weights {path} hold NaN or infinite values in {broken[0]} ({len(broken)} tensors in all)")


def locate(folder: Path, weights: Weights, on_progress: OnProgress = ignore_progress) -> tuple[Path, str]:
    """Return where a file of weights lies and its sha256; released ones are fetched unless they are in the cache.

    Raises UserError where the file is missing or another one than its digest says, and where a download fails.
    """
    path = inside(folder, weights.file) if weights.is_bundled else cached(weights)
    record = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        _fetch(weights, path, weights.sha256 or _recorded(record), on_progress)
    digest = sha256_of(path)
    if not weights.sha256:
        remember(record, digest, f"the weights {path}")
    elif digest != weights.sha256:
        raise UserError(
            f"the weights {path} have sha256 {digest}, but their card says {weights.sha256}: the file was changed or"
            " cut short; fetch it again, or correct the card if the new file is meant"
        )
    return path, digest


def remember(record: Path, digest: str, what: str) -> None:
    """Write down the digest of something that nobody has told us one of; raise UserError where it is another now."""
    before = _recorded(record)
    if before and before != digest:
        raise UserError(
            f"{what} have the digest {digest}, but had {before} when they were first fetched: they were changed since,"
            f" so numbers would not compare; fetch them again, or delete {record} if the new ones are meant"
        )
    if not before:
        write_text(record, f"{digest}\n")


def _recorded(record: Path) -> str:
    return record.read_text(encoding="utf-8").strip() if record.is_file() else ""


def cached(weights: Weights) -> Path:
    """Return where a released file lies once it was fetched: a folder of its own for every address."""
    address = hashlib.sha256((weights.url or weights.page).encode()).hexdigest()[:16]
    return inside(cache_folder() / "models" / address, weights.file)


def _fetch(weights: Weights, path: Path, known: str, on_progress: OnProgress) -> None:
    if weights.is_bundled:
        raise UserError(f"the weights {path} are missing: put the file there, or mend the card's entry")
    if not weights.url:
        raise UserError(
            f"the weights {weights.file} are for people to fetch: open {weights.page} in a browser and put the file at"
            f" {path}; or take another file from there by `vlmbench convert FILE --base NAME`"
        )
    download(_address(weights.url), path, sha256=known, on_progress=on_progress)


def _address(url: str) -> str:
    if not url.startswith(_HUB):
        return url
    owner, name, file = [*url.removeprefix(_HUB).split("/", 2), "", ""][:3]
    return hub_url(f"{owner}/{name}", file)
