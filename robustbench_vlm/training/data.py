"""Training images: chosen by their names, held in memory where they fit, else read ahead of the steps."""

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
"""Gives images, uint8 (B, 3, H, W), by their places."""

_HELD_BYTES = 2**31
_CHUNK = 512
_THREADS = 8
"""Batches that are being read while one is trained on."""


@dataclass(frozen=True)
class TrainingImages:
    """Chosen images of a source, in their order."""

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def slice(self, start: int, stop: int) -> "TrainingImages":
        """Return those from `start` up to `stop`."""
        return TrainingImages(self.source, self.indices[start:stop])

    @functools.cached_property
    def labels(self) -> Tensor:
        """(N,), int64."""
        return torch.tensor([self.source.labels[index] for index in self.indices])

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The samples' names."""
        return tuple(self.source.ids[index] for index in self.indices)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over names and labels."""
        text = "\n".join(f"{label} {name}" for label, name in zip(self.labels.tolist(), self.ids, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def read(self) -> Read:
        """How to read images by their places: from memory where all of them fit into 2 GiB."""
        shape = self.source.read(self.indices[:1]).shape[1:]
        if shape.numel() * len(self) > _HELD_BYTES:
            return lambda places: self.source.read([self.indices[place] for place in places])
        held = torch.empty(len(self), *shape, dtype=torch.uint8)
        for start in range(0, len(self), _CHUNK):
            held[start : start + _CHUNK] = self.source.read(self.indices[start : start + _CHUNK])
        return lambda places: held[torch.as_tensor(places, dtype=torch.int64)]


def in_hashed_order(source: Source) -> TrainingImages:
    """Return all images in the order of their names' hashes, which no folder's sorting shows through."""
    order = sorted(range(len(source.ids)), key=lambda index: hashlib.sha256(source.ids[index].encode()).digest())
    return TrainingImages(source, order)


def read_ahead(batches: Iterable[Tensor], read: Read) -> Iterator[tuple[Tensor, Tensor]]:
    """Give each batch of places with its images, uint8 (B, 3, H, W), several batches read at once in threads."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures") as pool:
        waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(read, batch.tolist())))
                if len(waiting) > _THREADS:
                    yield _whole(waiting.popleft())
            while waiting:
                yield _whole(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _whole(waiting: tuple[Tensor, Future[Tensor]]) -> tuple[Tensor, Tensor]:
    return waiting[0], waiting[1].result()
