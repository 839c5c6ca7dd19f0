"""Random numbers that belong to a sample: a counter-based generator in plain integer tensor arithmetic.

A draw depends only on a sample's key and a counter, so that batch size, order, shards, workers and device change
nothing. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_UNIT = 2.0**-24


def key_of(*parts: str | int) -> int:
    """Return the 64-bit key of a tuple of names and numbers, equal on every machine."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def sample_keys(seed: int, dataset: str, sample_ids: Sequence[str]) -> Tensor:
    """Return one int64 key per sample, shape (B,)."""
    return torch.tensor([key_of(seed, dataset, sample_id) for sample_id in sample_ids], dtype=torch.int64)


def derive(keys: Tensor, purpose: str) -> Tensor:
    """Return keys of an independent stream for the same samples, shape (B,); `purpose` names a stage, say."""
    return _mix(keys ^ key_of(purpose))


def bits(keys: Tensor, counter: Tensor | int, count: int) -> Tensor:
    """Return `count` random 64-bit words per sample, int64 of shape (B, count).

    `counter` is one number or an int64 tensor (B,): which of a sample's draws this is.
    """
    row = _mix(keys + torch.as_tensor(counter, dtype=torch.int64, device=keys.device) * _GOLDEN)
    index = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _mix(row[:, None] + index * _GOLDEN)


def uniform(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return float32 numbers in [0, 1), shape (B, *shape), multiples of 2**-24 and so exact on every device."""
    words = bits(keys, counter, _size(shape))
    return (_shift(words, 40).to(torch.float32) * _UNIT).view(len(keys), *shape)


def integers(keys: Tensor, counter: Tensor | int, shape: Sequence[int], high: Tensor | int) -> Tensor:
    """Return int64 numbers in [0, high), shape (B, *shape); `high` broadcasts and lies in [1, 2**31]."""
    words = _shift(bits(keys, counter, _size(shape)), 33).view(len(keys), *shape)
    return (words * high) >> 31


def signs(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return float32 numbers in {-1, 1}, shape (B, *shape)."""
    positive = bits(keys, counter, _size(shape)) >= 0
    return (positive.to(torch.float32) * 2 - 1).view(len(keys), *shape)


def normal(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return float32 numbers of mean 0 and variance 1, nearly normal, shape (B, *shape).

    The sum of four 16-bit uniforms: bounded by 3.5, but exact on every device, which logarithm and cosine are not.
    """
    words = bits(keys, counter, _size(shape))
    total = (words & 0xFFFF) + (_shift(words, 16) & 0xFFFF) + (_shift(words, 32) & 0xFFFF) + _shift(words, 48)
    return ((2 * total - 4 * 0xFFFF).to(torch.float32) * (3**0.5 / 2**17)).view(len(keys), *shape)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _shift(words: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the generator needs the logical shift.
    return (words >> by) & ((1 << (64 - by)) - 1) if by else words


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _MIX_1
    words = (words ^ _shift(words, 27)) * _MIX_2
    return words ^ _shift(words, 31)
