"""Convert the state dict of a CLIP from the library transformers to the names and shapes of open_clip."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MARK = "vision_model.embeddings.patch_embedding.weight"
"""The name of a tensor that every CLIP of the library transformers has."""

_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
_QUERY_KEY_OR_VALUE = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of `transformers.CLIPModel` with open_clip's names and shapes.

    open_clip stores the matrices of queries, keys and values as one tensor, and transposes the projection matrices.
    Tensors with unknown names are not changed.
    """
    kept = {key: each for key, each in state.items() if not key.endswith("embeddings.position_ids")}
    found: dict[str, Tensor] = {}
    for key, tensor in kept.items():
        if matched := _QUERY_KEY_OR_VALUE.fullmatch(key):
            block, _, kind = matched.groups()
            parts = [kept.get(f"{block}.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            present = [part for part in parts if part is not None]
            found[f"{_renamed(block + '.')}attn.in_proj_{kind}"] = torch.cat(present)
        else:
            found[_renamed(key)] = tensor.T if key in _PROJECTIONS else tensor
    return found


def _renamed(key: str) -> str:
    for theirs, ours in _NAMES.items():
        key = key.replace(theirs, ours)
    return key
