"""Checks of the arguments of `zero_shot`. Each raises UserError and says what is expected."""

import re
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from robustbench_vlm.models.in_memory import InMemoryModel

ZERO_SHOT_FORMS = (
    "zero_shot(open_clip_model, tokenizer), zero_shot(transformers_model, processor), or zero_shot(image_encoder=...,"
    " text_encoder=..., logit_scale=..., image_size=..., mean=..., std=...)"
)
"""The accepted calls of `zero_shot`, as text for error messages."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PROBE = "a photo of a dog."
"""The text with which the text encoder is tried."""


def checked_name(name: str) -> str:
    """Return `name` unchanged; raise UserError if it cannot be the name of a model in memory.

    The records of the model are in a folder with this name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"the name of a model must have 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}: give"
            " another one by name="
        )
    return name


def check_settings(values: Mapping[str, Any], interpolation: str) -> None:
    """Raise UserError if a setting of a zero-shot model cannot be used.

    `values` has the arguments mean, std, image_size, logit_scale and logit_bias of `zero_shot`.
    """
    for key in ("mean", "std"):
        numbers = _numbers(values[key])
        if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers) or (key == "std" and 0 in numbers):
            raise UserError(
                f"{key} must be three numbers in [0, 1] for pixels in [0, 1], got {values[key]!r}: give one number per"
                " channel, such as (0.5, 0.5, 0.5), and divide by 255 if they are for pixels in 0 to 255"
            )
    size = values["image_size"]
    if isinstance(size, bool) or not isinstance(size, Integral) or not 1 <= int(size) <= 4096:
        raise UserError(
            f"image_size must be an integer from 1 to 4096, got {size!r}: give the side of the square input images in"
            " pixels, such as 224"
        )
    scale = _numbers([values["logit_scale"]])
    if not scale or not 0 < scale[0] < float("inf"):
        raise UserError(
            f"logit_scale must be a positive number, got {values['logit_scale']!r}: give the factor, not its logarithm"
        )
    if len(_numbers([values.get("logit_bias") or 0.0])) != 1:
        raise UserError(f"logit_bias must be a number, got {values['logit_bias']!r}: leave it out for no bias")
    if interpolation not in ("bicubic", "bilinear"):
        raise UserError(f'interpolation must be "bicubic" or "bilinear", got {interpolation!r}')


def _numbers(values: Any) -> list[float]:
    """Return a sequence of numbers as floats. The list is empty if `values` is anything else."""
    try:
        return [] if isinstance(values, str) else [float(each) for each in values if not isinstance(each, str)]
    except (TypeError, ValueError, RuntimeError):
        return []


def check_callables(**encoders: Any) -> None:
    """Raise UserError if an encoder is not a function. The keys are the argument names of `zero_shot`."""
    for name, encoder in encoders.items():
        if isinstance(encoder, Tensor) and name == "text_encoder":
            raise UserError(
                f"text_encoder must be a function from N texts to embeddings, got a tensor of shape"
                f" {list(encoder.shape)}: the prompts of the classes are its input, so write text_encoder=lambda texts:"
                " features[[prompts.index(text) for text in texts]], in which row n of features belongs to prompts[n]"
            )
        if not callable(encoder):
            raise UserError(
                f"{name} must be a torch module or a function, got {type(encoder).__name__}: {ZERO_SHOT_FORMS}"
            )


def check_dimensions(model: "InMemoryModel") -> None:
    """Run both encoders once. Raise UserError if one fails, or if their embeddings have different lengths."""
    side = model.image_size
    probe = torch.full((1, 3, side, side), 0.5, device=model.encoder.mean.device)
    with torch.no_grad():
        images = _probed(
            lambda: model.encoder(probe),
            f"the image encoder cannot read an image of {side} x {side} pixels, from image_size={side}",
            "give the image_size and the dtype that the image encoder was made for",
        )
    texts = _probed(
        lambda: model.text_features((_PROBE,)),
        f"the text encoder cannot read the text {_PROBE!r}",
        "give a text_encoder that takes a list of texts, or the tokenizer that the model was made for, with the model's"
        " context length",
    )
    if images.shape[1] != texts.shape[1]:
        raise UserError(
            f"the image encoder returns embeddings of {images.shape[1]} numbers, the text encoder of"
            f" {texts.shape[1]}: both must have the same number, so add the projection to the encoder that lacks it"
        )


def _probed(work: Callable[[], Tensor], problem: str, advice: str) -> Tensor:
    """Call an encoder. Raises UserError, with the problem, the original error and advice, if the encoder fails."""
    try:
        return work()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{problem} ({type(error).__name__}: {error}): {advice}") from error
