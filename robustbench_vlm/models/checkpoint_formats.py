"""Released checkpoints: read a file as data, recognise its format, and return the image and text encoder in it.

OpenAI's and open_clip's CLIP name their tensors alike; checkpoint formats differ in what is around them. The formats
are those of TeCoA and its descendants (vision_encoder_state_dict), RobustVLM (visual), AdvFLYP (partial_state_dict),
AGFT (modules), a whole CLIP, and a CLIP with the names of the library transformers (LEAF).
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
    """Replaces numpy numbers in a pickle, such as the best accuracy, which are not needed."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def read_checkpoint(path: Path) -> Any:
    """Return the content of a weights file, on the CPU; code in it is never run.

    Raises UserError for a file that is damaged, holds code, or is not a checkpoint, with what it probably is.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the weights {path} are not a complete safetensors file: {error}{_guess(path)}") from error
    try:
        # torch warns about old pickles; the error below replaces the warning.
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Ignored, name) for name in _NUMPY]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # torch raises almost any exception for damaged bytes, failed assertions included.
    except Exception as error:
        raise UserError(f"the weights {path} {_refusal(path, error)}") from error


def _refusal(path: Path, error: Exception) -> str:
    if guess := _guess(path):
        return f"are not a checkpoint{guess}"
    message = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global) ([\w.]+)", message)
    # torch's own advice is to allow the code to run.
    lines = [line for line in message.splitlines() if line.strip() and "weights_only" not in line]
    what = f"it names {named[1] or named[2]}" if named else lines[0] if lines else type(error).__name__
    return (
        f"are not plain tensors: {what}. A pickle may hold code, and nothing of it was run; download it again if it may"
        " be cut short, or ask its author for the state dict as safetensors"
    )


def _guess(path: Path) -> str:
    """Return what a file that is not a checkpoint probably is and what to do; "" if it is not recognised."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        return f": it cannot be read, {error.strerror}"
    if not start:
        return ": the file is empty; fetch it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": it is a web page that was saved under this name; open its address in a browser and fetch the file"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; fetch the file behind it (git lfs pull, or the button Download)"
    if start.startswith(b"PK"):
        return _guess_archive(path)
    if tarfile.is_tarfile(path):
        return ": it is a tar archive; unpack it and name the file inside"
    return ""


def _guess_archive(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return ": it is cut short, its end is missing; fetch it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return ": it is a damaged archive; fetch it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            ": it is a TorchScript program, as OpenAI publishes them; use the same weights by their tag in"
            " open_clip, such as open_clip:ViT-B-32-quickgelu/openai"
        )
    if not any(name.endswith("data.pkl") for name in names):
        return ": it is a zip archive of other files; unpack it and name the file inside"
    return ""


State = Mapping[str, Tensor]

_EXTRA = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""Entries of OpenAI's and older open_clip state dicts that are not weights."""

_TRAINING = {"optimizer", "optimizer_state_dict", "optim", "scheduler", "lr_scheduler", "scaler"}
"""Entries that are needed only to resume a training."""


@dataclass(frozen=True)
class Encoders:
    """The weights of a checkpoint, float32, under open_clip's names; `text` is empty if there is no text encoder."""

    checkpoint_format: str
    """A key of `CHECKPOINT_FORMATS`."""
    image: State
    text: State


def encoders_of(content: Any, expected: str = "") -> Encoders:
    """Return the image and text encoder in a checkpoint, whose format is recognised by its entries.

    Raises UserError for an unknown format, for another format than `expected`, and for a file with further trained
    tensors: without them the model would not be the one that was trained.
    """
    found = next((name for name, read in CHECKPOINT_FORMATS.items() if _is_state(read(content))), None)
    if found is None:
        raise UserError(
            f"the file is in no known checkpoint format, it has {_entries(content)}; known are"
            f" {', '.join(CHECKPOINT_FORMATS)}"
        )
    if expected and expected != found:
        raise UserError(
            f"the checkpoint format is {found!r}, not {expected!r}: correct the field layout or the file in the card"
        )
    tensors = CHECKPOINT_FORMATS[found](content)
    others = [] if _is_state(content) else _others(content, set(map(id, tensors.values())))
    if others:
        raise UserError(
            f"the file has further trained tensors: {_few(others)}. This package cannot run prompts and the"
            " like; if they are not used, save only the encoders"
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


def check_fit(tower: str, state: State, expected: State) -> None:
    """Raise UserError unless the tensors of an encoder have the expected names and shapes."""
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        problems = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys)
        raise UserError(f"the tensors of the {tower} tower do not fit, {problems}. {described(state)}")


def _others(value: Any, used: set[int], name: str = "") -> list[str]:
    """Return the names of tensors in a file that are not `used` and not the state of a training."""
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
        return f"no entries but is a {type(content).__name__}"
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
"""Format -> a function from a file's content to its tensors by name; the first that finds any is the format."""


_TRANSFORMERS: Mapping[tuple[int, int], str] = {
    (768, 32): "ViT-B-32",
    (768, 16): "ViT-B-16",
    (1024, 14): "ViT-L-14",
    (1280, 14): "ViT-H-14",
}
"""Width and patch size -> the CLIP that has them."""
_RESNETS: Mapping[tuple[int, ...], str] = {
    (64, 3, 4, 6, 3): "RN50",
    (64, 3, 4, 23, 3): "RN101",
    (80, 4, 6, 10, 6): "RN50x4",
}
"""Width and blocks per stage -> the CLIP that has them."""


def described(state: Mapping[str, Tensor]) -> str:
    """Return a sentence that says which image encoder a state dict probably belongs to."""
    kernel = state.get("conv1.weight")
    if kernel is not None and kernel.dim() == 4 and "class_embedding" in state:
        width, patch, layers = kernel.shape[0], kernel.shape[-1], _count(state, "transformer.resblocks.")
        tokens = state["positional_embedding"].shape[0] if "positional_embedding" in state else 1
        size = f"{patch * math.isqrt(max(tokens - 1, 0))} pixels"
        known = _TRANSFORMERS.get((width, patch))
        what = f"a vision transformer of width {width}, patches of {patch}, {layers} layers, for images of {size}"
    elif "layer1.0.conv1.weight" in state:
        width, blocks = state["layer1.0.conv1.weight"].shape[0], [_count(state, f"layer{n}.") for n in range(1, 5)]
        known = _RESNETS.get((width, *blocks))
        what = f"a ResNet of width {width} with {'-'.join(map(str, blocks))} blocks"
    else:
        return "The file does not look like the image encoder of a CLIP."
    return f"The file looks like {what}{f', as {known}' if known else ''}."


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
