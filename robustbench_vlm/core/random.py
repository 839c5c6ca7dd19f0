"""Random numbers per sample: a counter-based generator that uses only integer arithmetic on tensors.

Each number depends only on the key of its sample and on a counter. It does not depend on the batch size, the order of
the samples, the number of workers, or the device. The mixing function is the finaliser of SplitMix64 (Steele, Lea and
Flood, OOPSLA 2014).
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
    """Return a signed 64-bit key for a tuple of names and numbers. All machines compute equal keys."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def sample_keys(seed: int, dataset: str, sample_ids: Sequence[str]) -> Tensor:
    """Return one key per sample, int64 [B]. A key depends on the seed, the name of the dataset and the sample id."""
    return torch.tensor([key_of(seed, dataset, sample_id) for sample_id in sample_ids], dtype=torch.int64)


def derive(keys: Tensor, purpose: str) -> Tensor:
    """Return new keys, int64 [B]. Their random numbers are independent of the random numbers of `keys`, int64 [B].

    `purpose` is a text that identifies the new keys, such as the name of an attack.
    """
    return _mix(keys ^ key_of(purpose))


def redraw(keys: Tensor, purpose: str, number: Tensor | int) -> Tensor:
    """Return the keys of one of several draws, int64 [B], for the keys of B samples, int64 [B].

    `number` is the number of the draw: one integer for all samples, or int64 [B]. Draws with other purposes or numbers
    have independent random numbers.
    """
    return bits(derive(keys, purpose), number, 1)[:, 0]


def bits(keys: Tensor, counter: Tensor | int, count: int) -> Tensor:
    """Return `count` random 64-bit words per sample, int64 [B, count].

    `keys` is int64 [B], one key per sample. `counter` is a number that callers change for every new set of random
    numbers: one integer for all samples, or int64 [B]. Equal keys and counters give equal words.
    """
    row = _mix(keys + torch.as_tensor(counter, dtype=torch.int64, device=keys.device) * _GOLDEN)
    index = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _mix(row[:, None] + index * _GOLDEN)


def uniform(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return uniform random numbers in [0, 1), float32 [B, *shape].

    The numbers are multiples of 2**-24. float32 represents them exactly, so all devices give equal numbers. `bits`
    explains `keys` and `counter`.
    """
    words = bits(keys, counter, _size(shape))
    return (_shift(words, 40).to(torch.float32) * _UNIT).view(len(keys), *shape)


def integers(keys: Tensor, counter: Tensor | int, shape: Sequence[int], high: Tensor | int) -> Tensor:
    """Return random integers in [0, high), int64 [B, *shape].

    `high` is an integer in [1, 2**31], or an int64 tensor of such integers that broadcasts to [B, *shape]. `bits`
    explains `keys` and `counter`.
    """
    words = _shift(bits(keys, counter, _size(shape)), 33).view(len(keys), *shape)
    return (words * high) >> 31


def signs(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return random signs, -1 or 1, float32 [B, *shape]. `bits` explains `keys` and `counter`."""
    positive = bits(keys, counter, _size(shape)) >= 0
    return (positive.to(torch.float32) * 2 - 1).view(len(keys), *shape)


def normal(keys: Tensor, counter: Tensor | int, shape: Sequence[int]) -> Tensor:
    """Return nearly normal random numbers of mean 0 and variance 1, float32 [B, *shape].

    Each number is a scaled sum of four 16-bit uniform numbers, so its absolute value is at most 3.5. The sum is exact
    on every device. Exactly normal numbers would need the logarithm and the cosine. Devices round these differently.
    `bits` explains `keys` and `counter`.
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
    # In torch, a right shift of int64 copies the sign bit, but this generator needs a shift that fills with zeros.
    return (words >> by) & ((1 << (64 - by)) - 1) if by else words


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift(words, 30)) * _MIX_1
    words = (words ^ _shift(words, 27)) * _MIX_2
    return words ^ _shift(words, 31)
