"""Small random contexts with smooth encoders in float64, for tests with finite differences."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.test_time.base import DefenseContext

SIDE, WIDTH, CLASSES = 4, 6, 3


def context_of(settings: Mapping[str, float], count: int = 3, *, differentiate: bool = True) -> DefenseContext:
    """Return a context for `count` samples. Its encoders are a linear layer and a tanh."""
    random = torch.Generator().manual_seed(0)
    pixels = 3 * SIDE * SIDE
    weights = torch.randn(2, pixels, WIDTH, generator=random, dtype=torch.float64) / pixels**0.5
    words = torch.randn(8 * 5, WIDTH, generator=random, dtype=torch.float64)
    text = torch.randn(CLASSES + 2, WIDTH, generator=random, dtype=torch.float64)
    unit = nn.functional.normalize(text, dim=1)

    def encode_texts(tokens: Tensor) -> Tensor:
        return nn.functional.normalize((tokens.flatten(2) @ words).tanh(), dim=-1)

    return DefenseContext(
        keys=sample_keys(0, "made-up", [str(n) for n in range(count)]),
        image_encoder=lambda images: 2 * (images.flatten(1) @ weights[0]).tanh(),
        undefended_encoder=lambda images: (images.flatten(1) @ weights[1]).tanh(),
        text_features=unit[:CLASSES],
        null_features=unit[CLASSES:],
        token_embeddings=torch.randn(CLASSES, 8, 5, generator=random, dtype=torch.float64),
        text_encoder=encode_texts,
        scale=5.0,
        settings=settings,
        differentiate=differentiate,
    )


def alone(context: DefenseContext, row: int) -> DefenseContext:
    """Return the context of the sample in one row."""
    return replace(context, keys=context.keys[row : row + 1])


def random_images(count: int = 3) -> Tensor:
    """Return random images with pixels in [0.3, 0.7], float64."""
    random = torch.Generator().manual_seed(1)
    return 0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=random, dtype=torch.float64)
