"""Training images: selection, order, and reading, from memory if they fit or else ahead of the steps."""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.datasets.base import Source

Read = Callable[[Sequence[int]], Tensor]
"""Type of a function from indices to images, uint8 (B, 3, H, W)."""

_MAX_BYTES_IN_MEMORY = 2**31
_CHUNK = 512
_THREADS = 8
"""Threads that read images, and batches that are read ahead."""


@dataclass(frozen=True)
class TrainingImages:
    """Selected images of a source, in a fixed order."""

    source: Source
    indices: Sequence[int]
    """The images' indices in the source."""

    def __len__(self) -> int:
        return len(self.indices)

    def slice(self, start: int, stop: int) -> "TrainingImages":
        """Return the images from `start` up to `stop`."""
        return TrainingImages(self.source, self.indices[start:stop])

    @functools.cached_property
    def labels(self) -> Tensor:
        """The images' classes, (N,), int64."""
        return torch.tensor([self.source.labels[index] for index in self.indices])

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The images' names."""
        return tuple(self.source.ids[index] for index in self.indices)

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of names and labels."""
        text = "\n".join(f"{label} {name}" for label, name in zip(self.labels.tolist(), self.ids, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def read(self) -> Read:
        """The function that reads images by their positions here; from memory if all of them fit into 2 GiB."""
        shape = self.source.read(self.indices[:1]).shape[1:]
        if shape.numel() * len(self) > _MAX_BYTES_IN_MEMORY:
            return lambda rows: self.source.read([self.indices[row] for row in rows])
        images = torch.empty(len(self), *shape, dtype=torch.uint8)
        for start in range(0, len(self), _CHUNK):
            images[start : start + _CHUNK] = self.source.read(self.indices[start : start + _CHUNK])
        return lambda rows: images[torch.as_tensor(rows, dtype=torch.int64)]


def in_hashed_order(source: Source) -> TrainingImages:
    """Return all images in the order of their names' hashes, which is independent of how a folder is sorted."""
    order = sorted(range(len(source.ids)), key=lambda index: hashlib.sha256(source.ids[index].encode()).digest())
    return TrainingImages(source, order)


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int) -> Tensor:
    """Return the numbers from 0 to `count` - 1 in a random order that follows from the seed, int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def read_ahead(batches: Iterable[Tensor], read: Read) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch of indices with its images, uint8 (B, 3, H, W); threads read the next batches meanwhile."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="training images") as pool:
        waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(read, batch.tolist())))
                if len(waiting) > _THREADS:
                    rows, images = waiting.popleft()
                    yield rows, images.result()
            while waiting:
                rows, images = waiting.popleft()
                yield rows, images.result()
        finally:
            for _, future in waiting:
                future.cancel()
