"""Engines: where the jobs of a run are computed, by name; the records are the same wherever."""

import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry

if TYPE_CHECKING:
    from robustbench_vlm.engine.cost import Resources

Job = TypeVar("Job")
"""What a worker is handed: names and numbers, which travel by pickle; its text says what it is."""
Answer = TypeVar("Answer")


class WorkerDied(UserError):
    """A worker ended without an answer: killed from outside, out of memory, or with the machine that it was on."""


class RunJobs(Protocol):
    """Yields every job with the function's answer as soon as it is there, in any order.

    What a worker raises is raised here: a UserError as it is, all else as RuntimeError with the worker's traceback.
    Raises WorkerDied, naming the job, where no answer will come. Closing the iterator ends what is under way.
    """

    def __call__(
        self, function: Callable[[Job], Answer], jobs: Sequence[Job], resources: "Resources"
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Run the jobs with resolved resources."""


@dataclass(frozen=True)
class Engine:
    """A way to run jobs on the resources of a request."""

    prepare: Callable[["Resources"], None]
    """Begin what takes a while, before there is a plan; raises UserError where the engine cannot work."""
    count_workers: Callable[["Resources"], int]
    """How many workers there are for the device, which is resolved: the number that 0 workers stand for."""
    run_jobs: RunJobs


ENGINES = Registry(
    "engine",
    {
        "local": "robustbench_vlm.engine.local:LOCAL",
        "ray": "robustbench_vlm.engine.ray_cluster:RAY",
    },
)


def attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """Return a job's answer, or what its function raised in a form that travels to the process that asked."""
    try:
        return function(job)
    except UserError as error:
        return UserError(str(error))
    except Exception:  # it is raised again where the answer is read, whatever it is
        return RuntimeError(f"a worker failed on {job!r}:\n{traceback.format_exc()}")
