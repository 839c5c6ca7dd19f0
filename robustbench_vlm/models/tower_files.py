"""Weights as files beside a card: safetensors, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of, write_whole
from robustbench_vlm.models.card import Weights


def save_weights(tensors: Mapping[str, Tensor], path: Path, stored: str = "float32") -> Weights:
    """Write tensors as safetensors, numbers rounded to `stored`, and return their entry in a card.

    Raises UserError where a number is beyond the range of `stored`.
    """
    from safetensors.torch import save_file

    whole = {key: _rounded(value, stored).cpu().contiguous() for key, value in tensors.items()}
    lost = [key for key, value in whole.items() if not torch.isfinite(value).all()]
    if lost:
        raise UserError(f"the weights {lost[0]} have numbers that {stored} cannot hold: the training went astray")
    write_whole(path, lambda partial: save_file(whole, partial))
    return Weights(path.name, sha256_of(path))


def _rounded(tensor: Tensor, stored: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, stored)
    return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()


def split_towers(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a CLIP's image tower, without "visual." in their names, and all others."""
    state = {key: value for key, value in network.state_dict().items() if key != "attn_mask"}
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    return image, {key: value for key, value in state.items() if not key.startswith("visual.")}


def copy_weights(source: Path, folder: Path) -> Weights:
    """Put a file of weights, such as a text tower, beside a new card; a file of that content there already is kept."""
    target = folder / source.name
    if not target.exists() or sha256_of(target) != sha256_of(source):
        write_whole(target, lambda partial: partial.write_bytes(source.read_bytes()))
    return Weights(target.name, sha256_of(target))
