"""Estimate the passes, seconds and memory of a run.

The estimate uses a short measurement of each model (`engine.probe`), and the times of earlier runs on this machine
(`engine.run_times`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.attacks.eot import DrawnClassifier, fresh_cost, random_classifier
from robustbench_vlm.attacks.model import SurrogateClassifier, with_gradient
from robustbench_vlm.attacks.sanity import sanity_cost
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import loaded_model
from robustbench_vlm.engine.probe import Robustness, Speed, measure_cell, measure_robustness
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run_times import Calibration, read_calibration
from robustbench_vlm.engine.store import cell_folder, read_finished
from robustbench_vlm.protocols.base import Protocol

BROKEN_CALLS, BROKEN_TIMES, BROKEN_SHARE = 6, 2.5, 0.75
"""A sample that is not robust costs this many calls with a gradient, up to so many times more or fewer. It costs at
most this share of a robust sample. Most attacks that succeed do so in their first steps, and samples with a
misclassified clean image are not attacked."""
PROCESS_MEMORY = 450 * 2**20
"""Bytes of memory that Python, torch and open_clip use before a model is loaded, measured on Linux."""
START_SECONDS = 5.0
"""Largest time in seconds from the start of the worker processes to their first pass, measured on Linux."""


@dataclass(frozen=True)
class Cost:
    """The estimated cost of computing one cell from the start.

    The fields "..._expected" are for the expected share of robust samples. The fields "..._most" assume that all
    samples are robust.
    """

    passes_expected: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    passes_most: int
    seconds_expected: float
    """Wall time in seconds with all workers."""
    seconds_most: float
    robust_expected: float
    """The expected share of robust samples, in [0, 1]."""
    memory: int
    """Memory of one worker in bytes."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of computing a plan from the start, in total and for each cell."""

    samples: int
    """Number of samples of all cells."""
    passes_expected: int
    """Number of forward and backward passes. A pass over B samples counts B times."""
    passes_range: tuple[int, int]
    """In nine of ten cases, the number of passes is in this range."""
    passes_most: int
    seconds_expected: float
    """Wall time in seconds with all workers."""
    seconds_range: tuple[float, float]
    """In nine of ten cases, the wall time is in this range. It assumes that other processes use the machine as much as
    during the earlier runs, or not at all if there were none."""
    seconds_most: float
    memory: int
    """Memory of all workers together in bytes."""
    workers: int
    batch_size: int
    device: str
    time_ratio: float
    """Expected ratio of wall time to measured time of passes. The seconds above include it."""
    recorded_runs: int
    """Number of earlier runs on this machine from which `time_ratio` was computed."""
    notes: tuple[str, ...]
    """Notes about a file of recorded run times that cannot be read."""
    cells: tuple[Cost, ...]
    """Cost of each cell, in the order of the plan's cells."""


def estimate_cost(plan: Plan) -> Estimate:
    """Measure the speed and robustness of each model of a plan, and return the cost of the plan.

    Only one model at a time is in memory. Robustness is measured only for cells that lack records, and only if this
    takes a small part of the time of the run (`probe.measure_robustness`).
    """
    resources = plan.request.resources
    calibration, notes = read_calibration(resources)
    models = dict.fromkeys(cell.model for cell in plan.cells)
    by_model = [[cell for cell in plan.cells if cell.model == model] for model in models]
    found = [each for cells in by_model for each in _model_costs(cells, plan, calibration)]
    costs = [cost for cost, _ in found]
    passes = sum(cost.passes_expected for cost in costs)
    seconds = sum(cost.seconds_expected for cost in costs)
    below, above = _factors(costs, [robustness for _, robustness in found])
    spread = math.log(calibration.spread)
    return Estimate(
        samples=plan.samples,
        passes_expected=passes,
        passes_range=(round(passes * math.exp(-below)), round(passes * math.exp(above))),
        passes_most=sum(cost.passes_most for cost in costs),
        seconds_expected=seconds,
        # The number of passes and the time of a pass have independent errors.
        seconds_range=(
            seconds * math.exp(-math.hypot(below, spread)),
            seconds * math.exp(math.hypot(above, spread)) + START_SECONDS,
        ),
        seconds_most=sum(cost.seconds_most for cost in costs),
        memory=max(cost.memory for cost in costs) * resources.workers,
        workers=resources.workers,
        batch_size=resources.batch_size,
        device=resources.device,
        time_ratio=calibration.ratio,
        recorded_runs=calibration.runs,
        notes=notes,
        cells=tuple(costs),
    )


def seconds_of(cost: Cost, passes: int) -> float:
    """Return the expected wall time in seconds of a number of passes of a cell."""
    return cost.seconds_most * passes / cost.passes_most


def attack_passes(attack: Attack, num_classes: int, classifier: Classifier) -> tuple[int, int]:
    """Return the numbers of forward and backward passes of an attack on one robust sample.

    They include all stages of the attack, and the checks of gradients and outputs. They also include the passes that
    decide whether the prediction is correct: one on the clean image and one after each stage. For a `DrawnClassifier`,
    they include the passes of the votes. The passes of the fresh draws are not included.
    """
    verdict = classifier.cost(gradient=False)
    checked = classifier.random if isinstance(classifier, DrawnClassifier) else classifier
    spent = [sanity_cost(checked), verdict]
    for stage in attack.stages:
        asked, gradients = stage.calls(stage.parameters, num_classes)
        seen = with_gradient(classifier, stage.gradient_mode)
        judged = asked + gradients if isinstance(seen, SurrogateClassifier) else 0
        calls = (asked, seen.cost(gradient=False)), (gradients, seen.cost(gradient=True))
        spent += [(count * each[0], count * each[1]) for count, each in (*calls, (judged + 1, verdict))]
    return sum(forward for forward, _ in spent), sum(backward for _, backward in spent)


def _model_costs(cells: Sequence[Cell], plan: Plan, calibration: Calibration) -> list[tuple[Cost, tuple[float, float]]]:
    """Return the cost of each cell, and the range of its expected passes. All cells must have one model."""
    # This code is in a separate function, so that no variable refers to the model after the call. The memory of the
    # model can then be freed.
    resources = plan.request.resources
    speed = measure_cell(cells[0], resources)
    classifier = cost_classifier(cells[0], plan.protocol, resources.device)
    passes = [cell_passes(cell, classifier) for cell in cells]
    by_threat: dict[Threat, list[int]] = {}
    for number, cell in enumerate(cells):
        by_threat.setdefault(cell.threat, []).append(number)
    robustness = {
        threat: _robustness([cells[n] for n in numbers], [passes[n] for n in numbers], speed, plan)
        for threat, numbers in by_threat.items()
    }
    return [
        _cost(cell, each, speed, robustness[cell.threat], classifier, resources, calibration.ratio)
        for cell, each in zip(cells, passes, strict=True)
    ]


def cell_passes(cell: Cell, classifier: Classifier) -> tuple[int, int]:
    """Return the numbers of forward and backward passes of a cell for one robust sample."""
    forward, backward = attack_passes(cell.attack, len(cell.dataset.classes), classifier)
    if not isinstance(classifier, DrawnClassifier):
        return forward, backward
    fresh = fresh_cost(classifier.random, cell.protocol.draws)
    return forward + fresh[0], backward + fresh[1]


def _robustness(cells: Sequence[Cell], passes: Sequence[tuple[int, int]], speed: Speed, plan: Plan) -> Robustness:
    """Measure the robustness of a model at one threat.

    If all records are on disk, or the model is attacked over several draws, return assumed values.
    """
    if plan.protocol.draws > 1:
        return Robustness()
    folders = ((cell, read_finished(cell_folder(plan.request.out, cell), cell)) for cell in cells)
    if all(sum(piece.stop - piece.start for piece in found.pieces) >= len(cell) for cell, found in folders):
        return Robustness()
    seconds = sum(len(cell) * speed.seconds(*each) for cell, each in zip(cells, passes, strict=True))
    return measure_robustness(cells, speed, seconds, plan.request.resources)


def cost_classifier(cell: Cell, protocol: Protocol, device: str) -> Classifier:
    """Return a classifier for the measurement, with as many passes per call as the classifiers of the run."""
    # The number of passes does not depend on the classes. One class is enough, so only one prompt has to be embedded.
    model = loaded_model(cell.model, cell.track, device)
    keys = torch.zeros(1, dtype=torch.int64)
    judge = model.classifier(["a photo."]).of_samples(keys)
    if protocol.draws > 1:
        return DrawnClassifier(random_classifier(judge, keys), keys, 1, protocol.eot)
    return judge if protocol.precision == protocol.verdict_precision else SurrogateClassifier(judge, judge)


def _cost(
    cell: Cell,
    passes: tuple[int, int],
    speed: Speed,
    robustness: Robustness,
    classifier: Classifier,
    resources: Resources,
    time_ratio: float,
) -> tuple[Cost, tuple[float, float]]:
    """Return the cost of a cell, and the smallest and the largest number of passes in nine of ten cases."""
    most = len(cell) * sum(passes)
    broken = BROKEN_CALLS * sum(classifier.cost(gradient=True)) / sum(passes)
    shares = [
        share + (1 - share) * min(broken * times, BROKEN_SHARE)
        for share, times in ((robustness.share, 1), (robustness.low, 1 / BROKEN_TIMES), (robustness.high, BROKEN_TIMES))
    ]
    seconds = len(cell) * speed.seconds(*passes) * robustness.overhead * time_ratio / resources.workers
    cost = Cost(
        passes_expected=round(most * shares[0]),
        passes_most=most,
        seconds_expected=seconds * shares[0],
        seconds_most=seconds,
        robust_expected=robustness.share,
        memory=PROCESS_MEMORY + speed.parameters + min(resources.batch_size, len(cell)) * speed.sample,
    )
    return cost, (most * shares[1], most * shares[2])


def _factors(costs: Sequence[Cost], ranges: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the logarithms of the factors from the expected passes down and up to the ends of their range.

    `ranges` has the range of each cell. All cells may be wrong in the same direction, so the ends are added.
    """
    expected = sum(cost.passes_expected for cost in costs)
    low, high = (sum(ends) for ends in zip(*ranges, strict=True))
    return max(math.log(expected / low), 0.0), max(math.log(high / expected), 0.0)
