"""Training images: select, order and read them.

If all images fit into memory, they are kept there. If not, threads read the next batches in advance.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.datasets.base import FileSource, Source
from robustbench_vlm.training.file_digests import content_digest

Read = Callable[[Sequence[int]], Tensor]
"""Type of a function from B indices to images, uint8 (B, 3, H, W)."""

_MAX_BYTES_IN_MEMORY = 2**31
_CHUNK = 512
_THREADS = 8
"""The number of threads that read images, and the number of batches that are read in advance."""


@dataclass(frozen=True)
class TrainingImages:
    """A selection of the images of a source, in a fixed order."""

    source: Source
    indices: Sequence[int]
    """The positions of the images in the source."""

    def __len__(self) -> int:
        return len(self.indices)

    def slice(self, start: int, stop: int) -> "TrainingImages":
        """Return the images from position `start` up to, but not including, position `stop`."""
        return TrainingImages(self.source, self.indices[start:stop])

    @functools.cached_property
    def labels(self) -> Tensor:
        """The classes of the images, int64 (N,)."""
        return torch.tensor([self.source.labels[index] for index in self.indices])

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The names of the images in the source, which are unique."""
        return tuple(self.source.ids[index] for index in self.indices)

    @functools.cached_property
    def digest(self) -> str:
        """A sha256 of the names and labels of the images.

        If the images are the user's files, the sha256 also covers the contents of the files. For published datasets, it
        does not, because the revision of a dataset identifies the contents.
        """
        text = "\n".join(f"{label} {name}" for label, name in zip(self.labels.tolist(), self.ids, strict=True))
        if isinstance(self.source, FileSource):
            text += f"\n{content_digest(self.source.path, self.indices)}"
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def read(self) -> Read:
        """A function that reads images by their positions in this object.

        If all images together need at most 2 GiB, they are read once and kept in memory.
        """
        shape = self.source.read(self.indices[:1]).shape[1:]
        if shape.numel() * len(self) > _MAX_BYTES_IN_MEMORY:
            return lambda rows: self.source.read([self.indices[row] for row in rows])
        images = torch.empty(len(self), *shape, dtype=torch.uint8)
        for start in range(0, len(self), _CHUNK):
            images[start : start + _CHUNK] = self.source.read(self.indices[start : start + _CHUNK])
        return lambda rows: images[torch.as_tensor(rows, dtype=torch.int64)]


def in_hashed_order(source: Source) -> TrainingImages:
    """Return all images of a source, sorted by the hash of their names. The order depends only on the names."""
    order = sorted(range(len(source.ids)), key=lambda index: hashlib.sha256(source.ids[index].encode()).digest())
    return TrainingImages(source, order)


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int) -> Tensor:
    """Return the integers from 0 to `count` - 1 in a random order that depends only on `seed`, int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def read_ahead(batches: Iterable[Tensor], read: Read) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch of indices, int64 (B,), with its images, uint8 (B, 3, H, W).

    Threads read the next batches in advance.
    """
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
