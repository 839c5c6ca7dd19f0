"""The text tower from the embeddings of tokens on, for those who change them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import Model, tokenize


class PromptTower(nn.Module):
    """The prompts of C classes: `tokens` are the embeddings of their tokens, (C, L, W)."""

    tokens: Tensor
    ends: Tensor

    def __init__(self, model: Model, prompts: Sequence[str | tuple[str, ...]]) -> None:
        super().__init__()
        network = model.network
        if getattr(network, "text_pool_type", "") != "argmax" or not isinstance(network.text_projection, nn.Parameter):
            raise UserError(
                f"the text tower of {model.name!r} is not CLIP's own, and nothing here can change its tokens: take a"
                " model of the architectures of CLIP"
            )
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise UserError("tokens are changed in one prompt a class: take a protocol with single prompts")
        device = network.get_parameter("logit_scale").device
        numbers = tokenize(texts, model.architecture).to(device)
        self.network = network
        # The end of the text has the largest number of all tokens.
        self.register_buffer("ends", numbers.argmax(dim=1))
        with torch.no_grad():
            self.register_buffer("tokens", network.token_embedding(numbers))  # type: ignore[operator]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the unit text embeddings (B, C, D) of changed tokens (B, C, L, W)."""
        network, shape = self.network, tokens.shape
        hidden = tokens.flatten(0, 1) + network.get_parameter("positional_embedding")
        hidden = network.ln_final(network.transformer(hidden, attn_mask=network.attn_mask))  # type: ignore[operator]
        ends = self.ends.repeat(shape[0])
        last: Tensor = hidden[torch.arange(len(hidden), device=hidden.device), ends]
        pooled = last @ network.get_parameter("text_projection")
        features: Tensor = functional.normalize(pooled, dim=-1).unflatten(0, shape[:2])
        return features
