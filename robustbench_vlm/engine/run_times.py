"""Recorded run times of this machine, and the range of run times that follows from them."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, write_text
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.engine.manifest import machine
from robustbench_vlm.engine.resources import Resources, cores

_STRICT = {"extra": "forbid"}
LEAST_SECONDS = 10.0
"""Shorter runs are not recorded, because the start of the processes takes a large part of their time."""
_KEPT, _USED = 100, 10
"""Number of runs in the file, and number of the latest runs of a machine that an estimate uses."""
USUAL, SPREAD = math.log(1.3), 0.45
"""Mean and standard deviation of the logarithm of measured time divided by predicted time, for unknown machines. The
page docs/scale.md has the measurements."""
_WEIGHT, _DEGREES = 0.5, 8
"""Number of recorded runs that the values above count as: for the mean and for the standard deviation."""


@dataclass(frozen=True)
class RunTime:
    """The time of one run."""

    __pydantic_config__ = _STRICT
    device: str
    """Name of the GPU or processor."""
    cores: int
    """Number of processor cores of the machine that the process may use."""
    workers: int
    engine: str
    predicted: float
    """Predicted seconds for the passes of the run, before the prediction was adapted to recorded runs."""
    measured: float
    """Wall time in seconds."""

    def __post_init__(self) -> None:
        if not (0 < self.predicted < math.inf and 0 < self.measured < math.inf):
            raise ValueError("the times of a run must be positive")


@dataclass(frozen=True)
class Calibration:
    """The ratio of measured to predicted run time."""

    ratio: float
    """The expected ratio."""
    spread: float
    """In nine of ten cases, the ratio is between `ratio` / `spread` and `ratio` * `spread`."""
    runs: int
    """Number of recorded runs of this machine that were used."""


def calibrate(ratios: Sequence[float]) -> Calibration:
    """Return the expected ratio and its range for the next run, from the ratios of earlier runs.

    Logarithms of ratios are assumed to be normally distributed, with a normal-inverse-gamma prior. The range is the
    predictive 90 % range of the next ratio (Gelman et al. 2013, Bayesian Data Analysis, section 3.3).
    """
    from scipy.stats import t

    logs = [math.log(ratio) for ratio in ratios]
    weight = _WEIGHT + len(logs)
    mean = (_WEIGHT * USUAL + sum(logs)) / weight
    squares = _DEGREES * SPREAD**2 + _WEIGHT * (USUAL - mean) ** 2 + sum((each - mean) ** 2 for each in logs)
    degrees = _DEGREES + len(logs)
    width = float(t.ppf(0.95, degrees)) * math.sqrt(squares / degrees * (1 + 1 / weight))
    return Calibration(math.exp(mean), math.exp(width), len(logs))


def read_calibration(resources: Resources) -> tuple[Calibration, tuple[str, ...]]:
    """Return the calibration from the recorded runs of this machine, and notes about a file that cannot be read.

    Runs of the same device, number of cores, number of workers and engine are used.
    """
    try:
        runs = _read()
    except UserError as error:
        return calibrate(()), (f"the recorded run times are not used: {error}",)
    about = _about(resources)
    own = [run for run in runs if (run.device, run.cores, run.workers, run.engine) == about]
    return calibrate([run.measured / run.predicted for run in own[-_USED:]]), ()


def record_run(resources: Resources, predicted: float, measured: float) -> None:
    """Add a run to the file of run times. Short runs are left out. If the file cannot be written, nothing happens.

    `predicted` and `measured` are in seconds, as in `RunTime`. A file that cannot be read is replaced.
    """
    if min(predicted, measured) <= LEAST_SECONDS:
        return
    try:
        runs = _read()
    except UserError:
        runs = ()
    run = RunTime(*_about(resources), predicted, measured)
    try:
        write_text(_file(), json.dumps([asdict(each) for each in [*runs, run][-_KEPT:]], indent=1) + "\n")
    except UserError:
        # The times only improve later estimates, so a read-only cache must not stop a run.
        return


def _file() -> Path:
    return cache_folder() / "run_times.json"


def _read() -> tuple[RunTime, ...]:
    path = _file()
    if not path.exists():
        return ()
    advice = "remove this file; the next run of at least 10 s writes a new one"
    return validate(tuple[RunTime, ...], read_json(path, "the file", advice=advice), str(path), advice=advice)


def _about(resources: Resources) -> tuple[str, int, int, str]:
    return str(machine(resources.device)["device"]), cores(), resources.workers, resources.engine
