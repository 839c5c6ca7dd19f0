"""The text encoder of a CLIP: tokens and embeddings of texts, and embeddings of prompts with tuned token embeddings."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models import CONTEXT_LENGTH
from robustbench_vlm.models.open_clip import Architecture, load_tokenizer
from robustbench_vlm.models.precision import arithmetic

if TYPE_CHECKING:
    from open_clip import SimpleTokenizer

_TEXT_BATCH_SIZE = 1024
"""The largest number of texts in one forward pass. This limits the memory, because ImageNet with 80 prompts per class
has 80,000 texts.
"""


def embed_texts(network: nn.Module, architecture: Architecture, texts: Sequence[str]) -> Tensor:
    """Return the embeddings of N texts, float32 [N, D], of unit length.

    The embeddings are always computed in float32. The precision of the attack does not change this.
    """
    device = network.get_parameter("logit_scale").device
    parts = []
    with torch.no_grad(), arithmetic():
        for start in range(0, len(texts), _TEXT_BATCH_SIZE):
            tokens = tokenize(texts[start : start + _TEXT_BATCH_SIZE], architecture).to(device)
            parts.append(network.encode_text(tokens, normalize=True))  # type: ignore[operator]
    return torch.cat(parts).to(torch.float32)


def tokenize(prompts: Sequence[str], architecture: Architecture) -> Tensor:
    """Return the tokens of N texts, int64 [N, L]. L is the context length of the architecture."""
    return load_tokenizer(architecture)(list(prompts))


def texts_with_equal_tokens(texts: Sequence[str], length: int = CONTEXT_LENGTH) -> list[tuple[int, ...]]:
    """Return groups of texts that have the same first `length` tokens.

    A group has the indices of two or more texts. CLIP's tokenizer ignores case, spaces next to punctuation and spaces
    between digits. For example, "X-ray" and "x - ray" have equal tokens.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, tokens in enumerate(_tokenizer(length)(list(texts)).tolist()):
        groups.setdefault(tuple(tokens), []).append(number)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def count_tokens(text: str) -> int:
    """Return the number of tokens into which CLIP's tokenizer splits a text, including the start and end tokens."""
    return len(_tokenizer(CONTEXT_LENGTH).encode(text)) + 2


@functools.cache
def _tokenizer(length: int) -> "SimpleTokenizer":
    import open_clip

    return open_clip.SimpleTokenizer(context_length=length)


class PromptEncoder(nn.Module):
    """The layers of the text encoder after the token embedding, for test-time defenses that tune prompts."""

    tokens: Tensor
    """The token embeddings of the prompts of C classes, float32 [C, L, W], with context length L and width W."""
    ends: Tensor
    """The position of the end-of-text token in each prompt, int64 [C]."""

    def __init__(
        self, network: nn.Module, architecture: Architecture, prompts: Sequence[str | tuple[str, ...]]
    ) -> None:
        super().__init__()
        if getattr(network, "text_pool_type", "") != "argmax" or not isinstance(network.text_projection, nn.Parameter):
            raise UserError(
                "the model does not have CLIP's text encoder, but prompts can be tuned only with that text encoder:"
                " choose a model with an architecture of CLIP"
            )
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise UserError(
                "the protocol has several prompts per class, but prompts can be tuned only if each class has one:"
                " choose a protocol with one prompt per class"
            )
        device = network.get_parameter("logit_scale").device
        numbers = tokenize(texts, architecture).to(device)
        self.network = network
        # The end-of-text token has the largest index in the vocabulary, so argmax finds its position.
        self.register_buffer("ends", numbers.argmax(dim=1))
        with torch.no_grad():
            self.register_buffer("tokens", network.token_embedding(numbers))  # type: ignore[operator]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return text embeddings, float32 [B, C, D], of unit length, from token embeddings, float32 [B, C, L, W]."""
        network, shape = self.network, tokens.shape
        hidden = tokens.flatten(0, 1) + network.get_parameter("positional_embedding")
        hidden = network.ln_final(network.transformer(hidden, attn_mask=network.attn_mask))  # type: ignore[operator]
        ends = self.ends.repeat(shape[0])
        last: Tensor = hidden[torch.arange(len(hidden), device=hidden.device), ends]
        pooled = last @ network.get_parameter("text_projection")
        features: Tensor = functional.normalize(pooled, dim=-1).unflatten(0, shape[:2])
        return features
