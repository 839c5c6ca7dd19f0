"""Resources of a run: device, workers, CPU threads, batch size and memory. No result depends on them."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.device import check_device

CPU_BATCH_SIZE = 64
"""Larger batches are not faster on a CPU."""
MAX_BATCH_SIZE = 256
"""Larger batches are not faster on a GPU: the matrix products of the image encoder are large enough by then."""
MEMORY_SHARE = 0.7
"""The part of the free GPU memory that the batch size is chosen for; the rest is for what one pass does not show."""
STATE_COPIES = 24
"""Image-sized float32 tensors that an attack's state holds for each sample in a batch, temporaries included."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """The device, processes and batch size that a run may use. No result depends on them."""

    device: str = ""
    """"cpu" or "cuda". Empty: "cuda" if there is a GPU."""
    workers: int = 0
    """Processes. 0: one per CPU core, or one per GPU, of all machines together."""
    batch_size: int = 0
    """Samples that one worker attacks at once. 0: 64 on a CPU, and what the memory takes on a GPU."""
    shard_size: int = 64
    """Samples that a worker takes and writes together; a killed run loses at most this many per worker."""
    engine: str = "local"
    """The engine that runs the workers, a name in `backends.ENGINES`."""
    address: str = ""
    """HOST:PORT of the head of a cluster, for an engine of several machines; empty: only this machine."""

    def __post_init__(self) -> None:
        check_device(self.device)
        for name, count in (("workers", self.workers), ("batch_size", self.batch_size)):
            if count < 0:
                raise UserError(f"{name} must be 0 or more, got {count}: give 0 to use as many as fit on this machine")
        if self.shard_size < 1:
            raise UserError(f"shard_size must be 1 or more, got {self.shard_size}: leave it out for the default of 64")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def threads_of_a_worker(workers: int) -> Iterator[None]:
    """Give torch as many threads as each of several workers has, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_memory(classifier: torch.nn.Module, images: Tensor) -> int:
    """Return the bytes that one sample under attack takes: saved activations and the state of the attack.

    Runs one forward and one backward pass of `classifier` on `images`, (B, 3, H, W).
    """
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(classifier(leaf).sum(), leaf)
    return sum(kept) // len(images) + STATE_COPIES * images[0].numel() * images.element_size()


def choose_batch_size(device: str, sample_bytes: int, workers: int) -> int:
    """Return the batch size that a worker begins with: on a GPU a power of two of samples of `sample_bytes` each."""
    if device == "cpu":
        return CPU_BATCH_SIZE
    # Memory that earlier measurements left in torch's cache is free for the workers.
    torch.cuda.empty_cache()
    sharing = -(-workers // max(1, torch.cuda.device_count()))
    fitting = int(MEMORY_SHARE * torch.cuda.mem_get_info()[0] / sharing / sample_bytes)
    # With a power of two, a little more or less free memory leads to the same groups of samples.
    return min(MAX_BATCH_SIZE, 1 << max(0, fitting.bit_length() - 1))


def with_fitting_batch_size(work: Callable[[int], T], batch_size: int) -> tuple[T, int]:
    """Call `work` with a batch size, halved whenever memory runs out, and return its result and the size that fit.

    Raises UserError if a batch of one sample does not fit.
    """
    while True:
        try:
            return work(batch_size), batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        # Outside of the except block, in which the frames of the error still hold its tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise UserError(
                f"the memory cannot hold one sample at a time: {message}; end other programs that use the memory, give"
                " fewer --workers or a smaller model, or use --device cpu"
            )
        batch_size //= 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the memory of a device, or of this machine, is used up."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
