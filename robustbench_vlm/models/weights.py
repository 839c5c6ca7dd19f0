"""Weights files: download once, check digests and finite values, read, and write as safetensors beside a card."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm.core.download import download, hub_url
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, inside, sha256_of, write_text, write_whole
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.models.card import Weights
from robustbench_vlm.models.checkpoint_formats import Encoders, encoders_of, read_checkpoint

_HUB = "hf:"


def load_weights(folder: Path, weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name; `folder` is the folder of its card.

    Raises UserError where the file is missing, has another digest, is damaged, holds code, or has weights that are not
    finite.
    """
    path, _ = locate(folder, weights)
    tensors = read_checkpoint(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"the weights {path} are not a mapping of names to tensors: save the state dict as safetensors")
    check_finite(path, tensors)
    return tensors


def load_encoders(path: Path, layout: str = "") -> Encoders:
    """Return the encoders in a checkpoint of any known format.

    Raises UserError as `load_weights` and `encoders_of` do.
    """
    content = read_checkpoint(path)
    try:
        towers = encoders_of(content, layout)
    except UserError as error:
        raise UserError(f"the weights {path}: {error}") from error
    check_finite(path, {**towers.image, **towers.text})
    return towers


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if a tensor has NaN or infinite values."""
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"the weights {path} hold NaN or infinite values in {broken[0]} ({len(broken)} tensors in all)")


def locate(folder: Path, weights: Weights, on_progress: OnProgress = ignore_progress) -> tuple[Path, str]:
    """Return the path of a weights file and its sha256; released weights are downloaded unless they are cached.

    Raises UserError where the file is missing, has another digest, or cannot be downloaded.
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
            " is incomplete; download it again, or correct the card if the new file is intended"
        )
    return path, digest


def remember(record: Path, digest: str, what: str) -> None:
    """Record the digest of a download without a published digest; raise UserError if it differs from the record."""
    before = _recorded(record)
    if before and before != digest:
        raise UserError(
            f"{what} have the digest {digest}, but had {before} when they were first fetched: they were changed"
            f" since, so results are not comparable; download them again, or delete {record} if the change is intended"
        )
    if not before:
        write_text(record, f"{digest}\n")


def _recorded(record: Path) -> str:
    return record.read_text(encoding="utf-8").strip() if record.is_file() else ""


def cached(weights: Weights) -> Path:
    """Return the path of a released file in the cache: one folder for each address."""
    address = hashlib.sha256((weights.url or weights.page).encode()).hexdigest()[:16]
    return inside(cache_folder() / "models" / address, weights.file)


def _fetch(weights: Weights, path: Path, known: str, on_progress: OnProgress) -> None:
    if weights.is_bundled:
        raise UserError(f"the weights {path} are missing: put the file there, or correct the card")
    if not weights.url:
        raise UserError(
            f"the weights {weights.file} cannot be downloaded by a program: open {weights.page} in a browser and put"
            f" the file at {path}; or convert another file from that page with `vlmbench convert FILE --base NAME`"
        )
    download(_address(weights.url), path, sha256=known, on_progress=on_progress)


def _address(url: str) -> str:
    if not url.startswith(_HUB):
        return url
    owner, name, file = [*url.removeprefix(_HUB).split("/", 2), "", ""][:3]
    return hub_url(f"{owner}/{name}", file)


def save_weights(tensors: Mapping[str, Tensor], path: Path, stored: str = "float32") -> Weights:
    """Write tensors as safetensors in the dtype `stored`, and return their entry in a card.

    Raises UserError for a number beyond the range of `stored`.
    """
    from safetensors.torch import save_file

    whole = {key: _rounded(value, stored).cpu().contiguous() for key, value in tensors.items()}
    lost = [key for key, value in whole.items() if not torch.isfinite(value).all()]
    if lost:
        raise UserError(
            f"the weights {lost[0]} have numbers that {stored} cannot hold: the training diverged, repeat it"
            " with a smaller learning rate"
        )
    write_whole(path, lambda partial: save_file(whole, partial))
    return Weights(path.name, sha256_of(path))


def _rounded(tensor: Tensor, stored: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, stored)
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()


def split_encoders(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a CLIP's image encoder, without "visual." in their names, and all other weights."""
    state = {key: value for key, value in network.state_dict().items() if key != "attn_mask"}
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    return image, {key: value for key, value in state.items() if not key.startswith("visual.")}


def copy_weights(source: Path, folder: Path) -> Weights:
    """Copy a weights file, such as a text encoder, beside a new card, unless an equal file is already there."""
    target = folder / source.name
    if not target.exists() or sha256_of(target) != sha256_of(source):
        write_whole(target, lambda partial: partial.write_bytes(source.read_bytes()))
    return Weights(target.name, sha256_of(target))
