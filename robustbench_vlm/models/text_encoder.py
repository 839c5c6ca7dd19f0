"""The text encoder of a CLIP: tokens, embeddings of texts, and embeddings of prompts whose tokens are changed."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.open_clip import Architecture
from robustbench_vlm.models.precision import arithmetic

_TEXT_BATCH_SIZE = 1024
"""Texts that are embedded at once: an ImageNet prompt ensemble has 80,000."""
_CONTEXT_LENGTH = 77
"""Tokens that the text encoder of every released CLIP reads; later tokens are cut off."""


def embed_texts(network: nn.Module, architecture: Architecture, texts: Sequence[str]) -> Tensor:
    """Return the embeddings of texts, unit length, float32 (N, D).

    They are computed in float32 in every process, whatever the precision of the attack.
    """
    device = network.get_parameter("logit_scale").device
    parts = []
    with torch.no_grad(), arithmetic():
        for start in range(0, len(texts), _TEXT_BATCH_SIZE):
            tokens = tokenize(texts[start : start + _TEXT_BATCH_SIZE], architecture).to(device)
            parts.append(network.encode_text(tokens, normalize=True))  # type: ignore[operator]
    return torch.cat(parts).to(torch.float32)


def tokenize(prompts: Sequence[str], architecture: Architecture) -> Tensor:
    """Return the tokens of texts, int64 (N, L), where L is the context length of the architecture."""
    length = int(architecture.config["text_cfg"].get("context_length", _CONTEXT_LENGTH))
    tokens: Tensor = _tokenizer(length)(list(prompts))
    return tokens


def texts_with_equal_tokens(texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return groups of two or more texts, as indices into `texts`, that have the same tokens.

    CLIP's tokenizer ignores case, and spaces beside punctuation and between digits: "X-ray" and "x - ray" are equal.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, tokens in enumerate(_tokenizer(_CONTEXT_LENGTH)(list(texts)).tolist()):
        groups.setdefault(tuple(tokens), []).append(number)
    return [tuple(group) for group in groups.values() if len(group) > 1]


@functools.cache
def _tokenizer(length: int) -> Callable[[list[str]], Tensor]:
    import open_clip

    tokenizer: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(context_length=length)
    return tokenizer


class PromptEncoder(nn.Module):
    """The text encoder from token embeddings on, for test-time defenses that tune prompts.

    `tokens` are the token embeddings of the prompts of C classes, (C, L, W), with context length L and width W.
    """

    tokens: Tensor
    ends: Tensor

    def __init__(
        self, network: nn.Module, architecture: Architecture, prompts: Sequence[str | tuple[str, ...]]
    ) -> None:
        super().__init__()
        if getattr(network, "text_pool_type", "") != "argmax" or not isinstance(network.text_projection, nn.Parameter):
            raise UserError(
                "the model's text encoder is not CLIP's own, and this package cannot tune its prompts: choose a model"
                " with an architecture of CLIP"
            )
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise UserError(
                "the protocol has several prompts per class, but prompts can be tuned only if there is one per class:"
                " choose a protocol with single prompts"
            )
        device = network.get_parameter("logit_scale").device
        numbers = tokenize(texts, architecture).to(device)
        self.network = network
        # The end-of-text token has the largest number of all tokens.
        self.register_buffer("ends", numbers.argmax(dim=1))
        with torch.no_grad():
            self.register_buffer("tokens", network.token_embedding(numbers))  # type: ignore[operator]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the text embeddings (B, C, D), of unit length, of changed token embeddings (B, C, L, W)."""
        network, shape = self.network, tokens.shape
        hidden = tokens.flatten(0, 1) + network.get_parameter("positional_embedding")
        hidden = network.ln_final(network.transformer(hidden, attn_mask=network.attn_mask))  # type: ignore[operator]
        ends = self.ends.repeat(shape[0])
        last: Tensor = hidden[torch.arange(len(hidden), device=hidden.device), ends]
        pooled = last @ network.get_parameter("text_projection")
        features: Tensor = functional.normalize(pooled, dim=-1).unflatten(0, shape[:2])
        return features
