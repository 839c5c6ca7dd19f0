"""What network an image tower's tensors are of, told from their shapes alone: for messages to people."""

import math
from collections.abc import Mapping

from torch import Tensor

_TRANSFORMERS: Mapping[tuple[int, int], str] = {
    (768, 32): "ViT-B-32",
    (768, 16): "ViT-B-16",
    (1024, 14): "ViT-L-14",
    (1280, 14): "ViT-H-14",
}
"""Width and side of a patch -> the CLIP that has them."""
_RESNETS: Mapping[tuple[int, ...], str] = {
    (64, 3, 4, 6, 3): "RN50",
    (64, 3, 4, 23, 3): "RN101",
    (80, 4, 6, 10, 6): "RN50x4",
}
"""Width and blocks a stage -> the CLIP that has them."""


def described(state: Mapping[str, Tensor]) -> str:
    """Return a sentence on the network that a state dict seems to be of."""
    kernel = state.get("conv1.weight")
    if kernel is not None and kernel.dim() == 4 and "class_embedding" in state:
        width, patch, layers = kernel.shape[0], kernel.shape[-1], _count(state, "transformer.resblocks.")
        tokens = state["positional_embedding"].shape[0] if "positional_embedding" in state else 1
        pictures = f"{patch * math.isqrt(max(tokens - 1, 0))} pixels"
        known = _TRANSFORMERS.get((width, patch))
        what = f"a vision transformer of width {width}, patches of {patch}, {layers} layers, for images of {pictures}"
    elif "layer1.0.conv1.weight" in state:
        width, blocks = state["layer1.0.conv1.weight"].shape[0], [_count(state, f"layer{n}.") for n in range(1, 5)]
        known = _RESNETS.get((width, *blocks))
        what = f"a ResNet of width {width} with {'-'.join(map(str, blocks))} blocks"
    else:
        return "The file looks like no image tower of a CLIP."
    return f"The file looks like {what}{f', as {known}' if known else ''}."


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
