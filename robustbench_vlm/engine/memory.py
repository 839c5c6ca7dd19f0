"""Memory: how many samples a worker passes at once, from what is free at first, and half as many where that ran out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from robustbench_vlm.core.errors import UserError

CPU_SLOTS = 64
"""More are no faster on a CPU."""
MOST_SLOTS = 256
"""More are no faster on a GPU: the tower's products are large by then."""
SHARE = 0.7
"""The part of the free memory that is counted on; the rest is for what no measurement of one pass shows."""
_TOLD = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

T = TypeVar("T")


def choose_slots(device: str, slot_bytes: int, workers: int) -> int:
    """Return how many samples a worker begins with: on a GPU a power of two, of which each takes `slot_bytes`."""
    if device == "cpu":
        return CPU_SLOTS
    # What measuring the speed has left in torch's cache is free for the workers.
    torch.cuda.empty_cache()
    sharing = -(-workers // max(1, torch.cuda.device_count()))
    fitting = int(SHARE * torch.cuda.mem_get_info()[0] / sharing / slot_bytes)
    # A power of two, so that a little more or less free memory leaves the same groups.
    return min(MOST_SLOTS, 1 << max(0, fitting.bit_length() - 1))


def with_fitting_slots(work: Callable[[int], T], slots: int) -> tuple[T, int]:
    """Return what `work` gives for so many slots, for half as many whenever memory runs out, and how many fitted.

    Raises UserError where one slot is too many.
    """
    while True:
        try:
            return work(slots), slots
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = str(error).partition("\n")[0]
        # Here and not above, where the frames of the error still hold its tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if slots == 1:
            raise UserError(
                f"one sample at a time is too much for the memory: {told}; end what else is in it, give fewer --workers"
                " or a smaller model, or take --device cpu"
            )
        slots //= 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device, of whatever kind, has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TOLD)
