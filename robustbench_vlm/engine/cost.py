"""Estimate the passes, seconds and memory of a run. The estimate uses a short measurement of each model's speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.model import SurrogateClassifier, with_gradient
from robustbench_vlm.attacks.sanity import sanity_cost
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import loaded_model
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import (
    Resources,
    run_backward,
    sample_memory,
    threads_of_a_worker,
    with_fitting_batch_size,
)
from robustbench_vlm.engine.shard import MEASURED_SAMPLES, cell_classifier, load_batch
from robustbench_vlm.protocols.base import Protocol

ROBUST_SHARE = 0.35
"""Assumed share of samples that are still classified correctly after all stages of an attack. For the bundled defenses
it is between 0 and 0.6."""
BROKEN_COST = 0.02
"""Assumed cost of a sample that is not robust, divided by the cost of a robust sample. The quotient is small, because
most successful attacks succeed in their first steps.
"""
PROCESS_MEMORY = 450 * 2**20
"""Bytes of memory that Python, torch and open_clip use before a model is loaded, measured on Linux."""
_LEAST_TIMES, _MOST_TIMES, _TIMING_SECONDS = 2, 10, 0.2
"""Limits for the repetitions of a timed pass: the minimum number, the maximum number, and the total time in seconds.

A pass of a small model takes milliseconds. A short delay of the machine could double one measured time, so the pass is
repeated.
"""


@dataclass(frozen=True)
class Cost:
    """The estimated cost of computing one cell from the start.

    The fields "..._expected" assume that the share `ROBUST_SHARE` of the samples is robust. The fields "..._most"
    assume that all samples are robust.
    """

    passes_expected: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    passes_most: int
    seconds_expected: float
    """Wall time in seconds with all workers."""
    seconds_most: float
    memory: int
    """Memory of one worker in bytes."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of computing a plan from the start, in total and for each cell."""

    samples: int
    """Number of samples of all cells."""
    passes_expected: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    passes_most: int
    seconds_expected: float
    """Wall time in seconds with all workers."""
    seconds_most: float
    memory: int
    """Memory of all workers together in bytes."""
    workers: int
    batch_size: int
    device: str
    cells: tuple[Cost, ...]
    """Cost of each cell, in the order of the plan's cells."""


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


def estimate_cost(plan: Plan) -> Estimate:
    """Measure the speed of each model of a plan, and return the cost of the plan.

    Only one model at a time is in memory.
    """
    resources = plan.request.resources
    models = dict.fromkeys(cell.model for cell in plan.cells)
    by_model = [[cell for cell in plan.cells if cell.model == model] for model in models]
    costs = [cost for cells in by_model for cost in _model_costs(cells, plan.protocol, resources)]
    return Estimate(
        samples=plan.samples,
        passes_expected=sum(cost.passes_expected for cost in costs),
        passes_most=sum(cost.passes_most for cost in costs),
        seconds_expected=sum(cost.seconds_expected for cost in costs),
        seconds_most=sum(cost.seconds_most for cost in costs),
        memory=max(cost.memory for cost in costs) * resources.workers,
        workers=resources.workers,
        batch_size=resources.batch_size,
        device=resources.device,
        cells=tuple(costs),
    )


def attack_passes(attack: Attack, num_classes: int, classifier: Classifier) -> tuple[int, int]:
    """Return the numbers of forward and backward passes of an attack on one robust sample.

    They include all stages of the attack, and the checks of gradients and outputs. They also include the passes that
    decide whether the prediction is correct: one on the clean image and one after each stage.
    """
    verdict = classifier.cost(gradient=False)
    spent = [sanity_cost(classifier), verdict]
    for stage in attack.stages:
        asked, gradients = stage.calls(stage.parameters, num_classes)
        seen = with_gradient(classifier, stage.gradient_mode)
        judged = asked + gradients if isinstance(seen, SurrogateClassifier) else 0
        calls = (asked, seen.cost(gradient=False)), (gradients, seen.cost(gradient=True))
        spent += [(count * each[0], count * each[1]) for count, each in (*calls, (judged + 1, verdict))]
    return sum(forward for forward, _ in spent), sum(backward for _, backward in spent)


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


def _model_costs(cells: Sequence[Cell], protocol: Protocol, resources: Resources) -> list[Cost]:
    """Return the cost of each cell. All cells must have one model."""
    # This code is in a separate function, so that no variable refers to the model after the call. The memory of the
    # model can then be freed.
    speed = _measure_cell(cells[0], resources)
    classifier = _cost_classifier(cells[0], protocol, resources.device)
    return [_cost(cell, speed, classifier, resources) for cell in cells]


def _measure_cell(cell: Cell, resources: Resources) -> Speed:
    """Measure the speed of the model of a cell on the first images of the cell."""
    count = min(resources.batch_size, MEASURED_SAMPLES, len(cell))
    images = load_batch(cell, 0, count, device=resources.device)[0].images
    classifier = cell_classifier(cell, resources.device).plain
    with threads_of_a_worker(resources.workers):
        speed, _ = with_fitting_batch_size(lambda fewer: measure_speed(classifier, images[:fewer]), count)
    return speed


def _cost_classifier(cell: Cell, protocol: Protocol, device: str) -> Classifier:
    """Return a classifier for the measurement, with as many passes per call as the classifiers of the run."""
    # The number of passes does not depend on the classes. One class is enough, so only one prompt has to be embedded.
    model = loaded_model(cell.model, cell.track, device)
    judge = model.classifier(["a photo."]).of_samples(torch.zeros(1, dtype=torch.int64))
    return judge if protocol.precision == protocol.verdict_precision else SurrogateClassifier(judge, judge)


def _cost(cell: Cell, speed: Speed, classifier: Classifier, resources: Resources) -> Cost:
    forward, backward = attack_passes(cell.attack, len(cell.dataset.classes), classifier)
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


def _fastest(work: Callable[[], None]) -> float:
    """Run `work` several times and return the shortest time in seconds.

    The shortest time is used, because the first call and calls on a busy machine take longer.
    """
    seconds: list[float] = []
    while len(seconds) < _LEAST_TIMES or (sum(seconds) < _TIMING_SECONDS and len(seconds) < _MOST_TIMES):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
