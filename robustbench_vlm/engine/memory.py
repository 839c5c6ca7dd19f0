"""Memory: how many samples a worker passes at once, from what is free at first, and half as many where that ran out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from robustbench_vlm.core.errors import UserError

CPU_BATCH_SIZE = 64
"""More are no faster on a CPU."""
MAX_BATCH_SIZE = 256
"""More are no faster on a GPU: the tower's products are large by then."""
SHARE = 0.7
"""The part of the free memory that is counted on; the rest is for what no measurement of one pass shows."""
_TOLD = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

T = TypeVar("T")


def choose_batch_size(device: str, sample_bytes: int, workers: int) -> int:
    """Return how many samples a worker begins with: on a GPU a power of two, of which each takes `sample_bytes`."""
    if device == "cpu":
        return CPU_BATCH_SIZE
    # What measuring the speed has left in torch's cache is free for the workers.
    torch.cuda.empty_cache()
    sharing = -(-workers // max(1, torch.cuda.device_count()))
    fitting = int(SHARE * torch.cuda.mem_get_info()[0] / sharing / sample_bytes)
    # A power of two, so that a little more or less free memory leaves the same groups.
    return min(MAX_BATCH_SIZE, 1 << max(0, fitting.bit_length() - 1))


def with_fitting_batch_size(work: Callable[[int], T], batch_size: int) -> tuple[T, int]:
    """Return what `work` gives for so many batch_size, for half as many whenever memory runs out, and how many fitted.

    Raises UserError where one slot is too many.
    """
    while True:
        try:
            return work(batch_size), batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = str(error).partition("\n")[0]
        # Here and not above, where the frames of the error still hold its tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise UserError(
                f"one sample at a time is too much for the memory: {told}; end what else is in it, give fewer --workers"
                " or a smaller model, or take --device cpu"
            )
        batch_size //= 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device, of whatever kind, has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TOLD)
