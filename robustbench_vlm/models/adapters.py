"""Get the encoders, tokenizer and preprocessing constants of an open_clip or transformers model in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError

_TOKENIZERS = "`open_clip.get_tokenizer(NAME)` for an open_clip model, the processor for a model of transformers"
Tokenizer = Callable[[list[str]], Tensor]
"""Type of a function from N texts to tokens, int64 [N, L]."""


@dataclass(frozen=True)
class EncoderPair:
    """The two encoders of a model, and the arguments of `zero_shot` that can be read from the model."""

    image: nn.Module
    """Maps normalised pixels, float32 [B, 3, H, W], to embeddings, float [B, D]."""
    text: "TextModule"
    settings: Mapping[str, Any]
    """Values that were read from the model, such as the logit scale. The keys are argument names of `zero_shot`."""


class ImageModule(nn.Module):
    """The image encoder of a model as a module. The forward pass calls the model's method with the name `method`."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, pixels: Tensor) -> Any:
        """Return the embeddings of normalised pixels, float [B, D]."""
        return _tensor_of(getattr(self.model, self.method)(pixels))


class TextModule(nn.Module):
    """The text encoder of a model as a module.

    The forward pass tokenizes texts and calls the model's method with the name `method`.
    """

    def __init__(self, model: nn.Module, method: str, tokenize: Tokenizer) -> None:
        super().__init__()
        self.model, self.method = model, method
        # A tokenizer may be a torch module. It is stored in a tuple, so that torch does not register
        # it as a sub-module.
        self._tokenize = (tokenize,)

    def tokens(self, texts: list[str]) -> Tensor:
        """Return the tokens of N texts, int64 [N, L]."""
        return self._tokenize[0](texts)

    def forward(self, texts: list[str]) -> Any:
        """Return the embeddings of N texts, float [N, D]."""
        device = next(self.model.parameters()).device
        return _tensor_of(getattr(self.model, self.method)(self.tokens(texts).to(device)))


def encoders_of(model: nn.Module, tokenizer: Any) -> EncoderPair:
    """Return the encoders of a model of open_clip or transformers, with the settings that can be read from it.

    Raises UserError if the model is from another library, or if the tokenizer does not return tokens.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"zero_shot needs a torch module, got {type(model).__name__}: give the loaded model first and its tokenizer"
            " second"
        )
    if tokenizer is None:
        raise UserError(f"zero_shot needs the tokenizer of the {type(model).__name__}: give {_TOKENIZERS}")
    if not callable(tokenizer) and not hasattr(tokenizer, "tokenizer"):
        raise UserError(f"zero_shot needs a tokenizer, got {type(tokenizer).__name__}: give {_TOKENIZERS}")
    if hasattr(model, "encode_image") and hasattr(model, "encode_text"):
        methods, settings = ("encode_image", "encode_text"), _open_clip(model)
        tokenize: Tokenizer = FunctionTokenizer(tokenizer)
    elif hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        methods = "get_image_features", "get_text_features"
        settings, tokenize = _transformers(model, tokenizer), _transformers_tokenizer(model, tokenizer)
    else:
        raise UserError(
            f"zero_shot cannot use a {type(model).__name__}: it has neither encode_image and encode_text (open_clip)"
            " nor get_image_features and get_text_features (transformers); give image_encoder= and text_encoder="
        )
    return EncoderPair(ImageModule(model, methods[0]), TextModule(model, methods[1], tokenize), settings)


def _open_clip(model: nn.Module) -> dict[str, Any]:
    visual: Any = getattr(model, "visual", None)
    pixels = getattr(visual, "preprocess_cfg", None) or {}
    size = pixels.get("size", getattr(visual, "image_size", None))
    return {
        "logit_scale": _exponential(getattr(model, "logit_scale", None)),
        "logit_bias": _number(getattr(model, "logit_bias", None)),
        "image_size": _side(size),
        "mean": pixels.get("mean") or getattr(visual, "image_mean", None),
        "std": pixels.get("std") or getattr(visual, "image_std", None),
    }


def _transformers(model: nn.Module, processor: Any) -> dict[str, Any]:
    images = getattr(processor, "image_processor", None)
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    return {
        "logit_scale": _exponential(getattr(model, "logit_scale", None)),
        "logit_bias": _number(getattr(model, "logit_bias", None)),
        "image_size": _side(getattr(vision, "image_size", None)),
        "mean": getattr(images, "image_mean", None),
        "std": getattr(images, "image_std", None),
    }


@dataclass(frozen=True)
class FunctionTokenizer:
    """A tokenizer that is a function of a list of texts only, such as the tokenizers of open_clip."""

    tokenizer: Callable[[list[str]], Any]

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the tokens of N texts, int64 [N, L]."""
        return _checked_tokens(self.tokenizer(texts), len(texts))


@dataclass(frozen=True)
class PaddingTokenizer:
    """A tokenizer of transformers.

    Every text is padded to the model's context length, because SigLIP was trained with padded texts.
    """

    tokenizer: Any
    length: int | None
    """The context length of the text encoder in tokens. None if the model does not state a context length."""

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the tokens of N texts, int64 [N, L]."""
        found = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return _checked_tokens(found["input_ids"], len(texts))


def _transformers_tokenizer(model: nn.Module, processor: Any) -> Tokenizer:
    """Return the tokenizer of a processor. `processor` may also be a tokenizer, or a function from texts to tokens."""
    tokenizer = getattr(processor, "tokenizer", processor)
    text: Any = getattr(getattr(model, "config", None), "text_config", None)
    if not hasattr(tokenizer, "pad_token_id"):
        return FunctionTokenizer(tokenizer)
    return PaddingTokenizer(tokenizer, getattr(text, "max_position_embeddings", None))


def _checked_tokens(tokens: Any, count: int) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or len(tokens) != count or tokens.is_floating_point():
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise UserError(
            f"the tokenizer must return int64 [{count}, L] for {count} texts, got {got}: give {_TOKENIZERS}"
        )
    return tokens.to(torch.int64)


def _tensor_of(output: Any) -> Any:
    """Return the embeddings in the output of an encoder.

    transformers 5 and later return an object that contains the embeddings.
    """
    if isinstance(output, Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    # CoCa's image encoder returns a pair: the embeddings, and tokens for the text decoder.
    return pooled if pooled is not None else output[0] if isinstance(output, tuple) else output


def _exponential(parameter: Any) -> float | None:
    number = _number(parameter)
    return None if number is None else float(torch.tensor(number, dtype=torch.float64).exp())


def _number(parameter: Any) -> float | None:
    return None if parameter is None else float(torch.as_tensor(parameter).detach().reshape(()))


def _side(size: Any) -> int | None:
    """Return the side of the square images that a model takes; raise UserError if the images are not square."""
    if size is None or isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise UserError(f"zero_shot needs a model of square images, got one of {height} x {width} pixels")
    return int(height)
