"""Weights are data: safetensors or weights_only, against a digest, finite, and never code."""

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.errors import UserError
from robustbench_vlm.files import inside, sha256_of
from robustbench_vlm.models.card import Weights


def load_weights(folder: Path, weights: Weights) -> dict[str, Tensor]:
    """Return a weight file's tensors by name.

    Raises UserError where the file is missing, is another one than its digest says, is damaged, holds code, or has
    weights that are not finite.
    """
    path = inside(folder, weights.file)
    if not path.is_file():
        raise UserError(f"the weights {path} are missing: put the file there, or mend the card's entry")
    digest = sha256_of(path)
    if digest != weights.sha256:
        raise UserError(
            f"the weights {path} have sha256 {digest}, but their card says {weights.sha256}: the file was changed or"
            " cut short; fetch it again, or correct the card if the new file is meant"
        )
    tensors = _read(path)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"the weights {path} hold NaN or infinite values in {broken[0]} ({len(broken)} tensors in all)")
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the weights {path} are no whole safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            # Old pickles are warned of; ours is the refusal below.
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"the weights {path} are no plain tensors (a pickle may hold code, and nothing of it was run):"
            f" {str(error).splitlines()[0]}; save them as safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"the weights {path} are not a mapping of names to tensors: save the state dict as safetensors")
    return tensors
