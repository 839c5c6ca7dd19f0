"""Key layouts: how released checkpoints hold the towers of a CLIP, and what they are as state dicts of open_clip.

OpenAI's and open_clip's CLIP name their tensors alike; what differs is the wrapping. The layouts are those of
TeCoA and its descendants (vision_encoder_state_dict), RobustVLM (visual), AdvFLYP (partial_state_dict), AGFT (modules),
of a whole CLIP, and of one in the names of the library transformers (LEAF).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.tower_shapes import described
from robustbench_vlm.models.transformers import MARK, from_transformers

State = Mapping[str, Tensor]

_EXTRA = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""Entries of OpenAI's and older open_clip state dicts that are no weights."""

_TRAINING = {"optimizer", "optimizer_state_dict", "optim", "scheduler", "lr_scheduler", "scaler"}
"""Entries that only a training that goes on needs."""


@dataclass(frozen=True)
class Towers:
    """The weights of a checkpoint, float32, under open_clip's names; `text` is empty where it has no text tower."""

    layout: str
    image: State
    text: State


def towers_of(content: Any, layout: str = "") -> Towers:
    """Return the towers in a checkpoint, whose layout is recognised by its entries.

    Raises UserError where it has none that is known, or another than `layout`, and where the file holds more that was
    trained: a model of its towers alone would be another one than its name says.
    """
    found = next((name for name, read in LAYOUTS.items() if _is_state(read(content))), None)
    if found is None:
        raise UserError(f"no layout of a CLIP is known that has {_entries(content)}; known are {', '.join(LAYOUTS)}")
    if layout and layout != found:
        raise UserError(f"the layout is {found!r}, not {layout!r}: the card names the wrong layout or the wrong file")
    tensors = LAYOUTS[found](content)
    others = [] if _is_state(content) else _others(content, set(map(id, tensors.values())))
    if others:
        raise UserError(
            f"the file has more that was trained than the towers: {_few(others)}. Prompts and the like cannot be run by"
            " this package; if they are not used, save the towers alone"
        )
    state = {
        key.removeprefix("module."): tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }
    image = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    if not image:
        return Towers(found, state, {})
    text = {key: state[key] for key in state if not key.startswith("visual.") and key not in _EXTRA}
    return Towers(found, image, text)


def check_fit(tower: str, state: State, expected: State) -> None:
    """Raise UserError unless a tower's tensors are those expected, by name and shape."""
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(wrong.values()):
        said = "; ".join(f"{len(keys)} {what}: {_few(keys)}" for what, keys in wrong.items() if keys)
        raise UserError(f"the tensors of the {tower} tower do not fit, {said}. {described(state)}")


def _others(value: Any, used: set[int], name: str = "") -> list[str]:
    """Return the names of tensors below a file's content that are not `used` and no state of the training."""
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


def _hugging(content: Any) -> Any:
    return from_transformers(content) if _is_state(content) and MARK in content else None


LAYOUTS: Mapping[str, Callable[[Any], Any]] = {
    "vision_encoder_state_dict": _entry("vision_encoder_state_dict"),
    "partial_state_dict": _entry("partial_state_dict"),
    "modules": _entry("modules", "clip.visual"),
    "clip": _whole,
    "transformers": _hugging,
    "visual": lambda content: content,
}
"""Layout -> what gives its tensors by name from a file's content; the first that gives any is the file's."""
