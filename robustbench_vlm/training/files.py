"""The files that a training ends in: weights as safetensors, and a card that `vlmbench run --model` takes."""

from pathlib import Path

from torch import Tensor

from robustbench_vlm.files import sha256_of, write_whole
from robustbench_vlm.models.card import Weights


def save_weights(tensors: dict[str, Tensor], path: Path) -> Weights:
    """Write tensors as safetensors and return their entry in a card."""
    from safetensors.torch import save_file

    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_whole(path, lambda partial: save_file(whole, partial))
    return Weights(path.name, sha256_of(path))


def copy_weights(source: Path, folder: Path) -> Weights:
    """Put a file of weights, such as a text tower, beside a new card; a file of that content there already is kept."""
    target = folder / source.name
    if not target.exists() or sha256_of(target) != sha256_of(source):
        write_whole(target, lambda partial: partial.write_bytes(source.read_bytes()))
    return Weights(target.name, sha256_of(target))
