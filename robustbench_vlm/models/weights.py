"""Weights files: download them once, check their digests and values, read them, and write safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import inside, sha256_of, write_text, write_whole
from robustbench_vlm.core.hub_access import hub_url
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.models.card import Weights
from robustbench_vlm.models.checkpoint_files import read_checkpoint
from robustbench_vlm.models.checkpoint_formats import Encoders, dense, encoders_of
from robustbench_vlm.models.weights_cache import cached

_HUB = "hf:"


def load_weights(folder: Path, weights: Weights) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a weights file by name, in their stored shapes, and the sha256 of the file.

    Floating-point tensors become float32. `folder` is the folder of the model card. Raises UserError if the file is
    missing, is damaged, has a wrong digest, contains code, or has values that are not finite.
    """
    path, digest = locate(folder, weights)
    tensors = read_checkpoint(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(
            f"the weights {path} must map names to tensors, but they have other values: save the state dict as"
            " safetensors"
        )
    try:
        tensors = {key: dense(key, tensor) for key, tensor in tensors.items()}
    except UserError as error:
        raise UserError(f"cannot use the weights {path}: {error}") from error
    check_finite(path, tensors)
    return tensors, digest


def load_encoders(path: Path, layout: str = "") -> Encoders:
    """Return the encoders in a checkpoint file.

    `layout` is the expected checkpoint format. If it is "", all known formats are accepted. Raises UserError if the
    file cannot be read, its format is not accepted, or it has values that are not finite.
    """
    content = read_checkpoint(path)
    try:
        encoders = encoders_of(content, layout)
    except UserError as error:
        raise UserError(f"cannot use the weights {path}: {error}") from error
    check_finite(path, {**encoders.image, **encoders.text})
    return encoders


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if a tensor has NaN or infinite values. `path` is the file with the tensors, for the message.

    The tensors may have any shape and dtype.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"the weights {path} have NaN or infinite values in {len(broken)} tensors, for example in {broken[0]}:"
            " ask the author for another file, or repeat the training with a smaller learning rate"
        )


def locate(folder: Path, weights: Weights, on_progress: OnProgress = ignore_progress) -> tuple[Path, str]:
    """Return the path and the sha256 of a weights file. Download the file first if it is not in the cache.

    `folder` is the folder of the model card. Raises UserError if the file is missing, has a wrong digest, or cannot be
    downloaded.
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
            f"the weights {path} have sha256 {digest}, but their card states {weights.sha256}: the file was changed or"
            " is incomplete; download it again, or correct the card if the new file is intended"
        )
    return path, digest


def remember(record: Path, digest: str, what: str) -> None:
    """Compare the digest of a file with the digest in `record`, which was written after the first download.

    If `record` does not exist, write it. A later call then detects if a file without a published digest has changed.
    Raises UserError if the digests differ. `what` is the name of the file in the error message.
    """
    before = _recorded(record)
    if before and before != digest:
        raise UserError(
            f"{what} have the digest {digest}, but had {before} when they were first downloaded: they have changed"
            f" since, so results are not comparable; download them again, or delete {record} if the change is intended"
        )
    if not before:
        write_text(record, f"{digest}\n")


def _recorded(record: Path) -> str:
    return record.read_text(encoding="utf-8").strip() if record.is_file() else ""


def _fetch(weights: Weights, path: Path, known: str, on_progress: OnProgress) -> None:
    if weights.is_bundled:
        raise UserError(f"the weights {path} do not exist: put the file there, or correct the path in the card")
    if not weights.url:
        raise UserError(
            f"the weights {weights.file} cannot be downloaded automatically: open {weights.page} in a browser and save"
            f" the file as {path}; or convert another file from that page with `vlmbench convert FILE --base NAME`"
        )
    download(_address(weights.url), path, sha256=known, on_progress=on_progress)


def _address(url: str) -> str:
    if not url.startswith(_HUB):
        return url
    owner, name, file = url.removeprefix(_HUB).split("/", 2)
    return hub_url(f"{owner}/{name}", file)


def save_weights(tensors: Mapping[str, Tensor], path: Path, stored: str = "float32") -> Weights:
    """Write tensors to a safetensors file, and return the `Weights` entry of this file for a model card.

    The tensors may have any shape. Floating-point tensors are rounded to the dtype `stored`. Other tensors keep their
    dtype. Raises UserError if a value is too large for the dtype.
    """
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, such as tied weights, so each tensor is copied.
    whole = {key: _rounded(value, stored).to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    lost = [key for key, value in whole.items() if not torch.isfinite(value).all()]
    if lost:
        raise UserError(
            f"the weights {lost[0]} have values that are too large for {stored}: the training diverged; repeat it with"
            " a smaller learning rate"
        )
    write_whole(path, lambda partial: save_file(whole, partial))
    return Weights(path.name, sha256_of(path))


def _rounded(tensor: Tensor, stored: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, stored)
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()


def split_encoders(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the image encoder and of the text encoder of a CLIP, by name.

    The names of the image encoder's tensors are returned without the prefix "visual.".
    """
    state = {key: value for key, value in network.state_dict().items() if key != "attn_mask"}
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    return image, {key: value for key, value in state.items() if not key.startswith("visual.")}


def copy_weights(source: Path, folder: Path) -> Weights:
    """Copy a weights file into the folder of a new card, unless the folder already has an equal file."""
    target = folder / source.name
    if not target.exists() or sha256_of(target) != sha256_of(source):
        write_whole(target, lambda partial: partial.write_bytes(source.read_bytes()))
    return Weights(target.name, sha256_of(target))
