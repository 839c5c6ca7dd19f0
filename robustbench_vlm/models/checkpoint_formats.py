"""Checkpoint formats: recognise the format of a checkpoint from its entries, and return the encoders in it.

Checkpoint formats differ in the names of the tensors and in the dicts that contain the tensors. The known formats are:

* vision_encoder_state_dict: TeCoA, and later projects whose code is based on TeCoA;
* visual: the project RobustVLM;
* partial_state_dict: AdvFLYP;
* modules: AGFT;
* clip: a whole CLIP from OpenAI or open_clip;
* transformers: a CLIP from the library transformers, for example LEAF.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.transformers import MARK, from_transformers

State = Mapping[str, Tensor]
"""A state dict: the tensors of a network by name."""

_EXTRA = {"input_resolution", "context_length", "vocab_size", "attn_mask", "n_averaged", "num_updates", "decay"}
"""Entries of state dicts that are not weights: sizes, the mask of the text encoder, and counters of moving averages."""

_STATE_ENTRIES = ("state_dict", "model_state_dict", "model", "model_state", "module", "network", "weights")
"""Names of entries in which training code saves the state dict of a model."""

_AVERAGE_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Names of entries in which training code saves a moving average of the weights."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module"}
"""Name parts that DataParallel, torch.compile, FSDP and Lightning add to the names of tensors."""

_TRAINING = {"optimizer", "optimizer_state_dict", "optim", "scheduler", "lr_scheduler", "scaler"}
"""Entries that are needed only to resume a training."""


@dataclass(frozen=True)
class Encoders:
    """The image and text encoder of a checkpoint, with open_clip's tensor names."""

    checkpoint_format: str
    """A key of `CHECKPOINT_FORMATS`."""
    image: State
    """The weights of the image encoder by name, float32. The prefix "visual." is removed from the names."""
    text: State
    """The weights of the text encoder and the logit scale by name, float32. Empty if the file has no text encoder."""


def encoders_of(content: Any, expected: str = "") -> Encoders:
    """Return the image and text encoder in the content of a checkpoint. The format is recognised from the content.

    Raises UserError if the format is unknown or is not `expected`, or if a tensor has no values. Also raises UserError
    if the checkpoint has other trained tensors, such as prompts or a second model. The encoders without these tensors
    would be a different model.
    """
    found = next((name for name, read in CHECKPOINT_FORMATS.items() if _is_state(read(content))), None)
    if found is None:
        raise UserError(
            f"the checkpoint format is unknown: the file has {_entries(content)}, but the known formats are"
            f" {', '.join(CHECKPOINT_FORMATS)}; save the state dict of the model as safetensors"
        )
    if expected and expected != found:
        raise UserError(
            f"the checkpoint format is {found!r}, but the card states {expected!r}: correct the field layout or"
            " the file in the card"
        )
    tensors = _without_prefix(_without_wrappers(CHECKPOINT_FORMATS[found](content)))
    others = _others(content, set(map(id, tensors.values())))
    if others:
        raise UserError(
            f"the file has trained tensors outside the encoders: {_few(others)}. This package cannot use them; if the"
            " model does not need them, save only the state dict of the model that you want to evaluate"
        )
    try:
        named = from_transformers(tensors) if found == "transformers" else tensors
        state = {key: dense(key, tensor) for key, tensor in named.items()}
    except (RuntimeError, IndexError) as error:
        raise UserError(f"the tensors have impossible shapes: {error}; download the file again") from error
    image = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    if not image:
        return Encoders(found, {key: state[key] for key in state if key not in _EXTRA}, {})
    text = {key: state[key] for key in state if not key.startswith("visual.") and key not in _EXTRA}
    return Encoders(found, image, text)


def dense(name: str, tensor: Tensor) -> Tensor:
    """Convert a tensor of a checkpoint to a dense tensor with the same shape. Floating-point tensors become float32.

    A logit scale of shape [1] becomes a scalar. Raises UserError if the tensor has no values or is quantised.
    """
    if tensor.is_meta:
        raise UserError(
            f"the tensor {name} is on the device meta, so it has no values: load the weights before you save the model"
        )
    if tensor.is_quantized:
        raise UserError(
            f"the tensor {name} is quantised, but floating-point weights are expected: save them unquantised"
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if name.endswith("logit_scale") and tensor.numel() == 1:
        tensor = tensor.reshape(())
    return tensor.float() if tensor.is_floating_point() else tensor


def _without_wrappers(state: State) -> State:
    """Remove the parts in `_WRAPPERS` from the names of tensors."""
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in found:
            raise UserError(f"the file has several tensors for {name}, for example {key}: save only one model")
        found[name] = tensor
    return found


def _without_prefix(state: State) -> State:
    """Return the tensors of a CLIP that is inside a larger module, such as a module of Lightning.

    The prefix of the larger module is removed from the names.
    """
    prefixes = sorted({key[: _start(key)] for key in state if _start(key) >= 0})
    if not prefixes:
        # A file with only an image encoder has no such prefix. A ViT has a tensor with the first name in `tops`, and a
        # ResNet has a tensor with the second name.
        tops = ("class_embedding", "attnpool.c_proj.weight")
        prefixes = sorted({key.removesuffix(top) for key in state for top in tops if key.endswith(top)})
    if len(prefixes) > 1:
        raise UserError(
            f"the file has several models, with the names {_few([f'{prefix}...' for prefix in prefixes])}: save only"
            " the state dict of the model that you want to evaluate"
        )
    prefix = prefixes[0] if prefixes else ""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _start(name: str) -> int:
    """Return the length of the prefix before "visual." or "vision_model." in a tensor's name.

    Return -1 if the name contains neither of them, because the tensor then does not belong to an image encoder.
    """
    for part in ("visual.", "vision_model."):
        at = f".{name}".find(f".{part}")
        if at >= 0:
            return at
    return -1


def check_fit(encoder: str, state: State, expected: State) -> None:
    """Raise UserError if the tensors of an encoder ("image" or "text") do not have the expected names and shapes."""
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    integers = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key in expected
        if key in state and expected[key].is_floating_point() and not state[key].is_floating_point()
    ]
    wrong = {
        "missing": missing,
        "unexpected": unexpected,
        "with another shape": shapes,
        "without floating-point values (quantised weights cannot be used)": integers,
    }
    if any(wrong.values()):
        problems = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys)
        found = described(state) if encoder == "image" else _described_text(state)
        raise UserError(f"the tensors of the {encoder} encoder do not fit, {problems}. {found}")


def _others(value: Any, used: set[int], name: str = "") -> list[str]:
    """Return the names of the tensors in `value` that belong neither to the encoders nor to the state of the training.

    `used` has the Python ids (`id(tensor)`) of the encoders' tensors.
    """
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


def _states(content: Any) -> Iterator[State]:
    """Yield the possible state dicts of a checkpoint: its whole content, and entries with weights or their average."""
    for state in (content, *(_entry(name)(content) for name in (*_STATE_ENTRIES, *_AVERAGE_ENTRIES))):
        if _is_state(state):
            yield state


def _whole(content: Any) -> Any:
    return next((state for state in _states(content) if any("visual" in key.split(".") for key in state)), None)


def _transformers_state(content: Any) -> Any:
    return next((state for state in _states(content) if any(_is_mark(key) for key in state)), None)


def _is_mark(name: str) -> bool:
    return f".{'.'.join(part for part in name.split('.') if part not in _WRAPPERS)}".endswith(f".{MARK}")


def _only_image(content: Any) -> Any:
    return next(_states(content), None)


CHECKPOINT_FORMATS: Mapping[str, Callable[[Any], Any]] = {
    "vision_encoder_state_dict": _entry("vision_encoder_state_dict"),
    "partial_state_dict": _entry("partial_state_dict"),
    "modules": _entry("modules", "clip.visual"),
    "clip": _whole,
    "transformers": _transformers_state,
    "visual": _only_image,
}
"""One function for each checkpoint format. The function takes the content of a file. It returns a dict of tensors if
the file has this format. It returns a value of another type if not. The functions are tried in this order. The first
function that returns a dict of tensors determines the format.
"""


_TRANSFORMERS: Mapping[tuple[int, int], str] = {
    (768, 32): "ViT-B-32",
    (768, 16): "ViT-B-16",
    (1024, 14): "ViT-L-14",
    (1280, 14): "ViT-H-14",
}
"""Names of CLIP models. Each key consists of the width and the patch size of the vision transformer."""
_RESNETS: Mapping[tuple[int, ...], str] = {
    (64, 3, 4, 6, 3): "RN50",
    (64, 3, 4, 23, 3): "RN101",
    (80, 4, 6, 10, 6): "RN50x4",
}
"""Names of CLIP models. Each key consists of the width of the ResNet and the numbers of blocks in its stages."""


def described(state: Mapping[str, Tensor]) -> str:
    """Return a sentence for an error message. It names the image encoder to which a state dict probably belongs."""
    kernel = state.get("conv1.weight")
    if kernel is not None and kernel.dim() == 4 and "class_embedding" in state:
        width, patch, layers = kernel.shape[0], kernel.shape[-1], _count(state, "transformer.resblocks.")
        tokens = _length(state, "positional_embedding")
        size = f"{patch * math.isqrt(max(tokens - 1, 0))} pixels"
        known = _TRANSFORMERS.get((width, patch))
        what = f"a vision transformer of width {width} with patch size {patch}, {layers} layers and images of {size}"
    elif "layer1.0.conv1.weight" in state:
        width, blocks = _length(state, "layer1.0.conv1.weight"), [_count(state, f"layer{n}.") for n in range(1, 5)]
        known = _RESNETS.get((width, *blocks))
        what = f"a ResNet of width {width} with {'-'.join(map(str, blocks))} blocks"
    else:
        return "The file does not look like the image encoder of a CLIP."
    return f"The file looks like {what}{f', as {known}' if known else ''}."


def _described_text(state: State) -> str:
    """Return a sentence for an error message. It states the size of the text encoder in a state dict."""
    if "token_embedding.weight" not in state:
        return "The file does not look like the text encoder of a CLIP."
    width, layers = _length(state, "ln_final.weight"), _count(state, "transformer.resblocks.")
    return (
        f"The file has a text encoder of width {width} with {layers} layers, a context of"
        f" {_length(state, 'positional_embedding')} tokens and a vocabulary of"
        f" {_length(state, 'token_embedding.weight')} tokens."
    )


def _length(state: State, name: str) -> int:
    """Return the length of a tensor's first dimension. Return 0 if the tensor is a scalar or is missing."""
    return state[name].shape[0] if name in state and state[name].dim() else 0


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
