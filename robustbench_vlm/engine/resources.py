"""Resources of a run: device, workers, CPU threads, batch size and memory. They do not affect the results."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.device import check_device

if TYPE_CHECKING:
    from torch import Tensor, nn

CPU_BATCH_SIZE = 64
"""Default batch size on a CPU. Larger batches are not faster."""
MAX_BATCH_SIZE = 256
"""Upper limit of the default batch size on a GPU. Larger batches are not faster."""
MEMORY_SHARE = 0.7
"""Share of the free GPU memory that the default batch size may use. The rest is a reserve, because the measurement does
not cover all uses of memory."""
STATE_COPIES = 24
"""Number of image-sized tensors that an attack keeps for each sample of a batch, including temporary tensors."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """The device, processes and batch size that a run may use. They do not affect the results."""

    device: str = ""
    """Name of the device, "cpu" or "cuda". "" means "cuda" on a machine with a GPU, and "cpu" on any other machine.
    """
    workers: int = 0
    """Number of worker processes. 0 means one process per GPU of all machines. With the device "cpu", 0 means one
    process per CPU core.
    """
    batch_size: int = 0
    """Number of samples that one worker attacks together. 0 means 64 on a CPU. On a GPU, 0 means a number that fits
    into the memory."""
    shard_size: int = 64
    """Number of samples in one file of records."""
    engine: str = "local"
    """Name of the engine that runs the workers. `backends.ENGINES` lists the names."""
    address: str = ""
    """Address HOST:PORT of the head of a ray cluster. If it is empty, only this machine is used."""

    def __post_init__(self) -> None:
        check_device(self.device)
        for name, count in (("workers", self.workers), ("batch_size", self.batch_size)):
            if count < 0:
                raise UserError(
                    f"{name} must be 0 or more, got {count}: give 0 to use the number that fits this machine"
                )
        if self.shard_size < 1:
            raise UserError(f"shard_size must be 1 or more, got {self.shard_size}: leave it out for the default of 64")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def without_program(function: Callable[[Any], Any]) -> Iterator[None]:
    """Return a context manager that hides the main script from processes that are started in its body.

    Without this context manager, such a process would run the main script again. Models and attacks are in packages. A
    worker therefore needs the main script only if the script defines `function`.
    """
    program = sys.modules["__main__"]
    if getattr(function, "func", function).__module__ != program.__name__:
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


@contextlib.contextmanager
def threads_of_a_worker(workers: int) -> Iterator[None]:
    """Return a context manager that sets the number of torch threads for one of `workers` processes.

    The processes share the CPU cores equally. The number is restored at the end.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample_memory(classifier: "nn.Module", images: "Tensor") -> int:
    """Return the memory in bytes that one sample needs under attack, for activations and for tensors of the attack.

    The result does not include the parameters and buffers of the classifier. The function runs one forward and one
    backward pass of `classifier` on `images`, float32 [B, 3, H, W]. A classifier without a gradient gets no backward
    pass.
    """
    import torch

    weights = {value.untyped_storage().data_ptr() for value in classifier.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: "Tensor") -> "Tensor":
        # Several saved tensors may be views of one storage, such as an expanded weight of an attention layer.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run_backward(classifier, images)
    return sum(kept.values()) // len(images) + STATE_COPIES * images[0].numel() * images.element_size()


def run_backward(classifier: "nn.Module", images: "Tensor") -> bool:
    """Run a forward pass on images, float32 [B, 3, H, W], and a backward pass from the logits to the images.

    Returns False, without a backward pass, if the logits have no gradient with respect to the images.
    """
    import torch

    leaf = images.clone().requires_grad_()
    logits = classifier(leaf).sum()
    return logits.requires_grad and torch.autograd.grad(logits, leaf, allow_unused=True)[0] is not None


def choose_batch_size(device: str, sample_bytes: int, workers: int) -> int:
    """Return the default batch size of a worker for samples of `sample_bytes` bytes each.

    On a GPU, it is a power of two that fits into the free memory. On a CPU, it is `CPU_BATCH_SIZE`.
    """
    if device == "cpu":
        return CPU_BATCH_SIZE
    import torch

    # torch caches memory from earlier measurements. Release it, so that it counts as free.
    torch.cuda.empty_cache()
    sharing = -(-workers // max(1, torch.cuda.device_count()))
    fitting = int(MEMORY_SHARE * torch.cuda.mem_get_info()[0] / sharing / sample_bytes)
    # Round down to a power of two, so that a small change in free memory does not change the batch size.
    return min(MAX_BATCH_SIZE, 1 << max(0, fitting.bit_length() - 1))


def with_fitting_batch_size(work: Callable[[int], T], batch_size: int) -> tuple[T, int]:
    """Call `work` with a batch size, and halve the batch size each time memory runs out.

    Returns the result of `work` and the batch size that fit. Raises UserError if a batch of one sample does not fit.
    """
    import torch

    while True:
        try:
            return work(batch_size), batch_size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
        # Free the memory after the except block, because the traceback of the error keeps tensors alive inside it.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise UserError(
                f"the memory is too small for a batch of one sample: {message}; close other programs that use memory,"
                " reduce --workers, use a smaller model, or use --device cpu"
            )
        batch_size //= 2


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error reports that a GPU or this machine ran out of memory."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
