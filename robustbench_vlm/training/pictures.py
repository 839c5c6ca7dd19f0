"""Training pictures: held in memory where they fit, else read ahead of the steps that need them."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from robustbench_vlm.datasets.dataset import Source

Read = Callable[[Sequence[int]], Tensor]
"""Gives pictures, uint8 (B, 3, H, W), by their indices."""

_HELD_BYTES = 2**31
_CHUNK = 512
_THREADS = 8
_AHEAD = 3
"""Batches that are being read while one is trained on."""


def in_hashed_order(ids: Sequence[str]) -> list[int]:
    """Return all indices in the order of the hashes of the samples' names, which no folder's sorting shows through."""
    return sorted(range(len(ids)), key=lambda index: hashlib.sha256(ids[index].encode()).digest())


def reader(source: Source, indices: Sequence[int]) -> Read:
    """Return how to read pictures by their places in `indices`: from memory where all of them fit into 2 GiB."""
    if source.read(indices[:1]).numel() * len(indices) > _HELD_BYTES:
        return lambda places: source.read([indices[place] for place in places])
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    held = torch.cat([source.read(chunk) for chunk in chunks])
    return lambda places: held[torch.as_tensor(places)]


def read_ahead(batches: Iterable[Tensor], read: Read) -> Iterator[tuple[Tensor, Tensor]]:
    """Give each batch of indices with its pictures, uint8 (B, 3, H, W), several batches read at once in threads."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures") as pool:
        waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(read, batch.tolist())))
                if len(waiting) > _AHEAD:
                    yield _whole(waiting.popleft())
            while waiting:
                yield _whole(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _whole(waiting: tuple[Tensor, Future[Tensor]]) -> tuple[Tensor, Tensor]:
    return waiting[0], waiting[1].result()
