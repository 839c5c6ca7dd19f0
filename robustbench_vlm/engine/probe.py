"""Short measurement of a model's speed and robustness, from which the cost of a run is estimated."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult, wilson
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resources import (
    Resources,
    run_backward,
    sample_memory,
    threads_of_a_worker,
    with_fitting_batch_size,
)
from robustbench_vlm.engine.shard import MEASURED_SAMPLES, cell_classifier, load_batch, run_group
from robustbench_vlm.engine.shard_groups import packed_groups

PROBE_STEPS = 20
"""Number of APGD steps of the attack that measures the robustness of a model."""
PROBE_SAMPLES = 208
"""Largest number of samples that this attack uses. They are the first samples of each dataset."""
_FEWEST_SAMPLES = 24
"""With fewer samples, the measured share of robust samples would say little, so no sample is attacked."""
_PROBE_SHARE, _PROBE_SECONDS = 0.02, 20.0
"""The attack may take this share of the longest predicted time of the run, and at most this many seconds."""
_LEAST_TIMES, _MOST_TIMES, _TIMING_SECONDS = 3, 12, 0.4
"""Limits for the repetitions of a timed pass: the minimum number, the maximum number, and the total time in seconds.

A pass of a small model takes milliseconds. A short delay of the machine could double one measured time, so the pass is
repeated.
"""
UNKNOWN_SHARE, UNKNOWN_RANGE = 0.35, (0.03, 0.7)
"""Assumed share of robust samples and its range, if no sample was attacked. The 66 results of the bundled models on the
leaderboard are between 0.01 and 0.69."""
LATER = 0.06
"""A full attack breaks up to this share of all samples after the short attack. On the leaderboard, AutoAttack breaks up
to 0.06 of the samples that `pgd-20` leaves."""
UNKNOWN_OVERHEAD = 1.3
"""Assumed time of an attack, divided by the time of its passes, if no sample was attacked. It is 1.2 to 1.5 for the
bundled models, and smaller for larger models."""


@dataclass(frozen=True)
class Speed:
    """The measured speed and memory of a classifier on this machine with one worker."""

    forward: float
    """Seconds per sample of a forward pass without gradients."""
    gradient: float
    """Seconds per sample of one forward pass plus one backward pass."""
    sample: int
    """Memory of one sample under attack in bytes. The function `resources.sample_memory` measures it."""
    parameters: int
    """Memory of the classifier's parameters and buffers in bytes."""

    def seconds(self, forward: float, backward: float) -> float:
        """Return the time of numbers of forward and backward passes. A pass over B samples counts B times."""
        return forward * self.forward + backward * (self.gradient - self.forward)


@dataclass(frozen=True)
class Robustness:
    """The measured share of robust samples, and the measured time of an attack."""

    share: float = UNKNOWN_SHARE
    """The expected share of samples that a full attack leaves robust."""
    low: float = UNKNOWN_RANGE[0]
    high: float = UNKNOWN_RANGE[1]
    """The share is between `low` and `high` in nine of ten cases."""
    overhead: float = UNKNOWN_OVERHEAD
    """The time of an attack, divided by the time of its passes."""


def measure_cell(cell: Cell, resources: Resources) -> Speed:
    """Measure the speed of the model of a cell on the first images of the cell."""
    count = min(resources.batch_size, MEASURED_SAMPLES)
    images = load_batch(cell, 0, min(count, len(cell)), device=resources.device)[0].images
    # Batches of a run have samples of several datasets, so they are full even if a dataset is small.
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    classifier = cell_classifier(cell, resources.device).plain
    with threads_of_a_worker(resources.workers):
        speed, _ = with_fitting_batch_size(lambda fewer: measure_speed(classifier, images[:fewer]), count)
    return speed


def measure_speed(classifier: torch.nn.Module, images: Tensor) -> Speed:
    """Measure the speed of a classifier on images, float32 [B, 3, H, W]. The time of the fastest pass is used."""

    def gradient() -> None:
        run_backward(classifier, images)

    def forward() -> None:
        with torch.no_grad():
            classifier(images)

    return Speed(
        # The memory is measured before the speed, because this measurement also warms up the passes that are timed.
        sample=sample_memory(classifier, images),
        forward=_fastest(forward) / len(images),
        gradient=_fastest(gradient) / len(images),
        parameters=sum(value.numel() * value.element_size() for value in classifier.state_dict().values()),
    )


def measure_robustness(cells: Sequence[Cell], speed: Speed, seconds: float, resources: Resources) -> Robustness:
    """Attack the first samples of some cells with APGD for a few steps, and return the share of robust samples.

    All cells must have one model and one threat. `seconds` is the longest predicted time of their run with one worker.
    If the attack would take too long compared with the run, or cannot attack the model, no sample is attacked, and
    assumed values are returned.
    """
    samples = min(PROBE_SAMPLES, _affordable(speed, seconds))
    probed = _probe_cells(cells, samples)
    used = sum(map(len, probed))
    if used < _FEWEST_SAMPLES or cells[0].attack.stages[0].gradient_free:
        return Robustness()
    results: list[SampleResult] = []

    def attack() -> None:
        shards = [Shard(number, 0, len(cell), cell.fingerprint) for number, cell in enumerate(probed)]
        for group in packed_groups(shards, probed, resources):
            for found in run_group(probed, resources, group):
                results.extend(found)

    # If the model cannot be attacked, the run reports the error.
    with contextlib.suppress(UserError), threads_of_a_worker(resources.workers):
        for cell in probed:
            cell_classifier(cell, resources.device)
        spent = _timed(attack)
        passes = speed.seconds(sum(each.forward for each in results), sum(each.backward for each in results))
        overhead = max(spent / passes, 1.0) if passes > 0 else UNKNOWN_OVERHEAD
        robust = sum(each.broken_by == "" for each in results)
        return _robustness(robust, used, sum(map(len, cells)), overhead)
    return Robustness()


def _robustness(robust: int, used: int, samples: int, overhead: float) -> Robustness:
    """Return the share of robust samples among `samples`, if `robust` of `used` of these samples are robust."""
    share = robust / used
    around = wilson(robust, used)
    # The interval of `wilson` has a confidence of 95 %. It is shortened, because some of the samples were attacked.
    unseen = (1 - used / samples) ** 0.5
    low, high = (share + (bound - share) * unseen for bound in around)
    return Robustness(share - min(LATER / 2, share / 4), max(low - min(LATER, low / 2), 0.0), high, overhead)


def _affordable(speed: Speed, seconds: float) -> int:
    """Return the number of samples that can be attacked in a small part of `seconds`."""
    allowed = min(_PROBE_SHARE * seconds, _PROBE_SECONDS)
    return int(allowed / max(speed.seconds(PROBE_STEPS + 5, PROBE_STEPS + 2) * UNKNOWN_OVERHEAD, 1e-9))


def _probe_cells(cells: Sequence[Cell], samples: int) -> list[Cell]:
    """Return one cell per dataset, with its first samples and the short attack."""
    by_dataset = {cell.dataset.name: cell for cell in cells}
    each = samples // len(by_dataset)
    (stage,) = load_attack("apgd-ce").stages
    found = []
    for cell in by_dataset.values():
        own = cell.samples
        few = dataclasses.replace(
            own,
            indices=own.indices[:each],
            ids=own.ids[:each],
            labels=own.labels[:each],
            image_digests=own.image_digests[:each],
        )
        mode = cell.attack.stages[0].gradient_mode
        short = dataclasses.replace(stage, parameters={**stage.parameters, "steps": PROBE_STEPS}, gradient_mode=mode)
        found.append(dataclasses.replace(cell, attack=Attack("probe", (short,), "short attack"), samples=few))
    return [cell for cell in found if len(cell)]


def _fastest(work: Callable[[], None]) -> float:
    """Run `work` several times and return the shortest time in seconds.

    The shortest time is used, because the first call and calls on a busy machine take longer.
    """
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < _LEAST_TIMES or (time.perf_counter() - begun < _TIMING_SECONDS and len(seconds) < _MOST_TIMES):
        seconds.append(_timed(work))
    return min(seconds)


def _timed(work: Callable[[], None]) -> float:
    """Run `work` and return its time in seconds on a machine that runs nothing else.

    On a CPU, this is the time that the processor spent on this process, if it is shorter than the time on the clock.
    While other processes use the processor, this process waits, and only the clock runs.
    """
    clock, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - clock
    return min(time.perf_counter() - clock, time.process_time() - processor)
