"""Execution engines by name: they run the jobs of a run in local processes or on a cluster, with equal records."""

import dataclasses
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry
from robustbench_vlm.models.device import choose_device

if TYPE_CHECKING:
    # It imports torch, which `vlmbench --help` must not.
    from robustbench_vlm.engine.resources import Resources

Job = TypeVar("Job")
"""The work of one worker: names and numbers, which are pickled; `str(job)` names it in messages."""
Answer = TypeVar("Answer")


class WorkerDied(UserError):
    """A worker ended without an answer: it was killed, ran out of memory, or its machine failed."""


class RunJobs(Protocol):
    """Yields every job with the function's answer as soon as it is finished, in any order.

    An exception of a worker is raised here: a UserError unchanged, anything else as RuntimeError with the worker's
    traceback. Raises WorkerDied, naming the job, if no answer will come. Closing the iterator stops the running jobs.
    """

    def __call__(
        self, function: Callable[[Job], Answer], jobs: Sequence[Job], resources: "Resources"
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Run the jobs with resolved resources."""


@dataclass(frozen=True)
class Engine:
    """A way to run jobs on the resources of a request."""

    prepare: Callable[["Resources"], None]
    """Starts slow preparations before the request is resolved; raises UserError if the engine cannot work."""
    count_workers: Callable[["Resources"], int]
    """Returns the number of workers that 0 workers stand for; the device of the resources is resolved."""
    run_jobs: RunJobs


ENGINES = Registry(
    "engine",
    {
        "local": "robustbench_vlm.engine.local:LOCAL",
        "ray": "robustbench_vlm.engine.ray_cluster:RAY",
    },
)


def resolve_resources(resources: "Resources") -> "Resources":
    """Return the resources with device and workers filled in; raise UserError for a GPU that is not there.

    The batch size stays as it is: `resolve.resolve` chooses it for the models of a request.
    """
    known = dataclasses.replace(resources, device=choose_device(resources.device))
    engine: Engine = ENGINES.load(resources.engine)
    return dataclasses.replace(known, workers=resources.workers or engine.count_workers(known))


def attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """Return a job's answer, or its exception in a form that can be sent to the process that asked for the job."""
    try:
        return function(job)
    except UserError as error:
        return UserError(str(error))
    except Exception:  # raised again by the process that reads the answer
        return RuntimeError(f"a worker failed on {job!r}:\n{traceback.format_exc()}")
