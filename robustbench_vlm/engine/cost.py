"""What a plan will cost: passes, seconds and memory, from a short measurement of the model's speed."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Logits
from robustbench_vlm.attacks.model import Transferred, passes_of, seen_in
from robustbench_vlm.attacks.sanity import probe_passes
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.models.device import check_device, choose_device

ROBUST_SHARE = 0.35
"""The assumed share of samples that go through every stage; of bundled defenses it is between 0 and 0.6."""
BROKEN_COST = 0.02
"""The assumed cost of every other sample, as a share of the whole: most fall in the first stage's first steps."""
STATE_COPIES = 24
"""Image-sized float32 tensors that an attack's state holds for each sample in a slot, temporaries included."""
PROCESS_MEMORY = 450 * 2**20
"""Bytes that Python, torch and open_clip take before anything is loaded, measured on Linux."""
_LEAST_TIMES, _MOST_TIMES, _TIMING_SECONDS = 2, 10, 0.2
"""How often a pass is timed: a small model is over in milliseconds, which any hiccup of the machine doubles."""


@dataclass(frozen=True)
class Resources:
    """What a run may use. No result depends on it."""

    device: str = ""
    """"cpu" or "cuda". Empty: "cuda" where there is one."""
    workers: int = 0
    """Processes. 0: one a CPU core, or one a GPU, of all machines together."""
    batch_size: int = 0
    """Samples that one worker passes at once. 0: 64, or on a GPU what its memory takes."""
    shard_size: int = 64
    """Samples that a worker takes and writes together; a killed run loses at most this many a worker."""
    engine: str = "local"
    """What runs the workers: a name of `engines.ENGINES`."""
    address: str = ""
    """HOST:PORT of the machines' head, for an engine that has several; empty: this machine alone."""

    def __post_init__(self) -> None:
        check_device(self.device)
        for name, count in (("workers", self.workers), ("batch", self.batch_size)):
            if count < 0:
                raise UserError(f"{name} {count} is no number of them: give 1 or more, or 0 for as many as fit here")
        if self.shard_size < 1:
            raise UserError(f"shard_size {self.shard_size} is no number of samples: give 1 or more")

    def resolved(self) -> "Resources":
        """Return the resources with device and workers filled in; raise UserError for a GPU that is not there.

        Slots are filled in by the plan, which measures what one takes.
        """
        known = dataclasses.replace(self, device=choose_device(self.device))
        engine: Engine = ENGINES.load(self.engine)
        return dataclasses.replace(known, workers=self.workers or engine.count_workers(known))


@dataclass(frozen=True)
class Cost:
    """What one cell costs from nothing: `expected` with an assumed robust share, `most` if every sample is robust."""

    passes_expected: int
    passes_most: int
    seconds_expected: float
    seconds_most: float
    """With all workers at it."""
    memory: int
    """Bytes, one worker."""


@dataclass(frozen=True)
class Estimate:
    """What a plan costs from nothing, as `Cost` has it for each of its cells, in their order."""

    samples: int
    passes_expected: int
    """Forward and backward passes of single samples."""
    passes_most: int
    seconds_expected: float
    seconds_most: float
    memory: int
    """Bytes, all workers together."""
    workers: int
    batch_size: int
    device: str
    cells: tuple[Cost, ...]


@dataclass(frozen=True)
class Speed:
    """A classifier's measured cost on this machine, one worker."""

    forward: float
    """Seconds a sample without a graph."""
    gradient: float
    """Seconds a sample forward and backward."""
    activations: int
    """Bytes a sample that the backward pass keeps."""
    parameters: int
    """Bytes."""
    image: int
    """Bytes of one image."""

    @property
    def sample(self) -> int:
        """Bytes that a sample under attack takes."""
        return self.activations + STATE_COPIES * self.image


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attack_passes(attack: Attack, num_classes: int, logits: Logits) -> tuple[int, int]:
    """Return the forward and backward passes that an attack on a classifier spends on a sample that stays robust.

    Those of all stages, of the harness's own verdicts (one clean, one a stage), and of the probes.
    """
    verdict = passes_of(logits, gradient=False)
    spent = [probe_passes(logits), verdict]
    for stage in attack.stages:
        asked, gradients = stage.calls(stage.parameters, num_classes)
        seen = seen_in(logits, stage.view)
        judged = asked + gradients if isinstance(seen, Transferred) else 0
        calls = (asked, passes_of(seen, gradient=False)), (gradients, passes_of(seen, gradient=True))
        spent += [(count * each[0], count * each[1]) for count, each in (*calls, (judged + 1, verdict))]
    return sum(forward for forward, _ in spent), sum(backward for _, backward in spent)


def measure_speed(classifier: torch.nn.Module, images: Tensor) -> Speed:
    """Time a classifier on a batch (B, 3, H, W): a warm-up, then the best of several passes of each kind."""
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    def gradient() -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(classifier(leaf).sum(), leaf)

    def forward() -> None:
        with torch.no_grad():
            classifier(images)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gradient()
    parameters = sum(value.numel() * value.element_size() for value in classifier.state_dict().values())
    return Speed(
        forward=_fastest(forward) / len(images),
        gradient=_fastest(gradient) / len(images),
        activations=sum(kept) // len(images),
        parameters=parameters,
        image=images[0].numel() * images.element_size(),
    )


def estimate(cells: Sequence[tuple[Cell, Speed, Logits]], resources: Resources) -> Estimate:
    """Add up what cells cost at the speeds of their models' towers; the classifiers count passes and are not called."""
    costs = tuple(_cost(cell, speed, logits, resources) for cell, speed, logits in cells)
    return Estimate(
        samples=sum(len(cell) for cell, _, _ in cells),
        passes_expected=sum(cost.passes_expected for cost in costs),
        passes_most=sum(cost.passes_most for cost in costs),
        seconds_expected=sum(cost.seconds_expected for cost in costs),
        seconds_most=sum(cost.seconds_most for cost in costs),
        memory=max(cost.memory for cost in costs) * resources.workers,
        workers=resources.workers,
        batch_size=resources.batch_size,
        device=resources.device,
        cells=costs,
    )


def _cost(cell: Cell, speed: Speed, logits: Logits, resources: Resources) -> Cost:
    forward, backward = attack_passes(cell.attack, len(cell.dataset.classes), logits)
    passes = len(cell) * (forward + backward)
    seconds = len(cell) * (forward * speed.forward + backward * (speed.gradient - speed.forward)) / resources.workers
    share = ROBUST_SHARE + (1 - ROBUST_SHARE) * BROKEN_COST
    return Cost(
        passes_expected=round(passes * share),
        passes_most=round(passes),
        seconds_expected=seconds * share,
        seconds_most=seconds,
        memory=PROCESS_MEMORY + speed.parameters + min(resources.batch_size, len(cell)) * speed.sample,
    )


@contextlib.contextmanager
def threads_of_a_worker(workers: int) -> Iterator[None]:
    """Give torch as many threads as each of several workers has, and put the number back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fastest(work: Callable[[], None]) -> float:
    """Return the least of several times; a busy machine or a first call must not pass for the speed."""
    seconds: list[float] = []
    while len(seconds) < _LEAST_TIMES or (sum(seconds) < _TIMING_SECONDS and len(seconds) < _MOST_TIMES):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
