"""Released checkpoints: read a file without running its code, recognise its format, and return its encoders.

Checkpoint formats differ in the entries around the tensors and in the tensors' names. The known formats are those of
TeCoA and later code based on it (vision_encoder_state_dict), RobustVLM (visual), AdvFLYP (partial_state_dict), AGFT
(modules), a whole CLIP of OpenAI or open_clip (clip), and a CLIP of the library transformers (transformers), which LEAF
uses.
"""

import math
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.transformers import MARK, from_transformers


class _Ignored:
    """A placeholder for numpy numbers in a pickle, such as the best accuracy, which are not needed."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def read_checkpoint(path: Path) -> Any:
    """Return the content of a weights file, with its tensors on the CPU; code in the file is never run.

    Raises UserError if the file is damaged, contains code, or is not a checkpoint. The message says what kind of file
    it probably is.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the file {path} is not a complete safetensors file: {error}{_guess(path)}") from error
    try:
        # torch warns about old pickles, but the error below already covers them.
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Ignored, name) for name in _NUMPY]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # For damaged bytes torch raises exceptions of almost any type, including AssertionError.
    except Exception as error:
        raise UserError(f"the file {path} {_problem(path, error)}") from error


def _problem(path: Path, error: Exception) -> str:
    if guess := _guess(path):
        return f"is not a checkpoint{guess}"
    message = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global) ([\w.]+)", message)
    # torch's message advises users to turn weights_only off, which would run the code in the file.
    lines = [line for line in message.splitlines() if line.strip() and "weights_only" not in line]
    found = f"it refers to {named[1] or named[2]}" if named else lines[0] if lines else type(error).__name__
    return (
        f"does not contain only tensors: {found}. A pickle may contain code, so none of it was run; download the file"
        " again if the download may be incomplete, or ask its author for the state dict as safetensors"
    )


def _guess(path: Path) -> str:
    """Return the probable kind of a file that is not a checkpoint, and advice; "" if the kind is not recognised."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        return f": it cannot be read ({error.strerror}); check the path and its permissions"
    if not start:
        return ": it is empty; download it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": it is a web page; open its address in a browser and download the file from there"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer; download the real file (git lfs pull, or the Download button)"
    if start.startswith(b"PK"):
        return _guess_archive(path)
    if tarfile.is_tarfile(path):
        return ": it is a tar archive; unpack it and give the checkpoint inside"
    return ""


def _guess_archive(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return ": it is incomplete, its end is missing; download it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return ": it is a damaged archive; download it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            ": it is a TorchScript program, the format of OpenAI's releases; use the same weights by their open_clip"
            " tag, such as open_clip:ViT-B-32-quickgelu/openai"
        )
    if not any(name.endswith("data.pkl") for name in names):
        return ": it is a zip archive of other files; unpack it and give the checkpoint inside"
    return ""


State = Mapping[str, Tensor]
"""The tensors of a network, by name."""

_EXTRA = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""Entries of the state dicts of OpenAI and older versions of open_clip that are not weights."""

_TRAINING = {"optimizer", "optimizer_state_dict", "optim", "scheduler", "lr_scheduler", "scaler"}
"""Entries that are needed only to resume a training."""


@dataclass(frozen=True)
class Encoders:
    """The image and text encoder of a checkpoint, with open_clip's tensor names."""

    checkpoint_format: str
    """A key of `CHECKPOINT_FORMATS`."""
    image: State
    """The weights of the image encoder by name, float32, in the shapes of the network; without the prefix "visual."."""
    text: State
    """The weights of the text encoder and the logit scale by name, float32; empty if the file has no text encoder."""


def encoders_of(content: Any, expected: str = "") -> Encoders:
    """Return the image and text encoder in the content of a checkpoint; its entries determine the format.

    Raises UserError if the format is unknown or differs from `expected`. It also refuses a file with other trained
    tensors, such as prompts, because the encoders would be a different model without them.
    """
    found = next((name for name, read in CHECKPOINT_FORMATS.items() if _is_state(read(content))), None)
    if found is None:
        raise UserError(
            f"the checkpoint format is unknown: the file has {_entries(content)}, but the known formats are"
            f" {', '.join(CHECKPOINT_FORMATS)}; save the state dict of the model as safetensors"
        )
    if expected and expected != found:
        raise UserError(
            f"the checkpoint format is {found!r}, expected {expected!r}: correct the field layout or the file in the"
            " card"
        )
    tensors = CHECKPOINT_FORMATS[found](content)
    others = [] if _is_state(content) else _others(content, set(map(id, tensors.values())))
    if others:
        raise UserError(
            f"the file has trained tensors outside the encoders: {_few(others)}. This package cannot use them; if the"
            " model does not need them, save only the encoders"
        )
    state = {
        key.removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    image = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    if not image:
        return Encoders(found, state, {})
    text = {key: state[key] for key in state if not key.startswith("visual.") and key not in _EXTRA}
    return Encoders(found, image, text)


def check_fit(encoder: str, state: State, expected: State) -> None:
    """Raise UserError unless the tensors of an encoder ("image" or "text") have the expected names and shapes."""
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "with another shape": shapes}
    if any(wrong.values()):
        problems = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys)
        raise UserError(f"the tensors of the {encoder} encoder do not fit, {problems}. {described(state)}")


def _others(value: Any, used: set[int], name: str = "") -> list[str]:
    """Return the names of the tensors in a file whose id is not in `used` and that are not the state of a training."""
    if isinstance(value, Tensor):
        return [name] if value.numel() > 1 and id(value) not in used else []
    if not isinstance(value, Mapping):
        return []
    inner = [(key, each) for key, each in value.items() if str(key).lower() not in _TRAINING]
    return [found for key, each in inner for found in _others(each, used, f"{name}.{key}".removeprefix("."))]


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _entries(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__} in place of entries"
    return f"the entries {_few([str(key) for key in content])}" if content else "no entries"


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(each, Tensor) for key, each in value.items())
    )


def _entry(*path: str) -> Callable[[Any], Any]:
    def read(content: Any) -> Any:
        for key in path:
            content = content.get(key) if isinstance(content, Mapping) else None
        return content

    return read


def _whole(content: Any) -> Any:
    for state in (content, _entry("state_dict")(content)):
        if _is_state(state) and any(key.removeprefix("module.").startswith("visual.") for key in state):
            return state
    return None


def _transformers_state(content: Any) -> Any:
    return from_transformers(content) if _is_state(content) and MARK in content else None


CHECKPOINT_FORMATS: Mapping[str, Callable[[Any], Any]] = {
    "vision_encoder_state_dict": _entry("vision_encoder_state_dict"),
    "partial_state_dict": _entry("partial_state_dict"),
    "modules": _entry("modules", "clip.visual"),
    "clip": _whole,
    "transformers": _transformers_state,
    "visual": lambda content: content,
}
"""Format -> a function that returns the tensors by name, or something else if the file has another format.

The first format whose function returns tensors is the format of a file.
"""


_TRANSFORMERS: Mapping[tuple[int, int], str] = {
    (768, 32): "ViT-B-32",
    (768, 16): "ViT-B-16",
    (1024, 14): "ViT-L-14",
    (1280, 14): "ViT-H-14",
}
"""Width and patch size -> the name of the CLIP with this vision transformer."""
_RESNETS: Mapping[tuple[int, ...], str] = {
    (64, 3, 4, 6, 3): "RN50",
    (64, 3, 4, 23, 3): "RN101",
    (80, 4, 6, 10, 6): "RN50x4",
}
"""Width and number of blocks in each stage -> the name of the CLIP with this ResNet."""


def described(state: Mapping[str, Tensor]) -> str:
    """Return a sentence about the image encoder that a state dict probably belongs to, for an error message."""
    kernel = state.get("conv1.weight")
    if kernel is not None and kernel.dim() == 4 and "class_embedding" in state:
        width, patch, layers = kernel.shape[0], kernel.shape[-1], _count(state, "transformer.resblocks.")
        tokens = state["positional_embedding"].shape[0] if "positional_embedding" in state else 1
        size = f"{patch * math.isqrt(max(tokens - 1, 0))} pixels"
        known = _TRANSFORMERS.get((width, patch))
        what = f"a vision transformer of width {width} with patch size {patch}, {layers} layers and images of {size}"
    elif "layer1.0.conv1.weight" in state:
        width, blocks = state["layer1.0.conv1.weight"].shape[0], [_count(state, f"layer{n}.") for n in range(1, 5)]
        known = _RESNETS.get((width, *blocks))
        what = f"a ResNet of width {width} with {'-'.join(map(str, blocks))} blocks"
    else:
        return "The file does not look like the image encoder of a CLIP."
    return f"The file looks like {what}{f', as {known}' if known else ''}."


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
