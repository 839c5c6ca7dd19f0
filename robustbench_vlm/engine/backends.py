"""Registry of execution engines. An engine runs jobs in local processes or on a cluster.

All engines give equal records.
"""

import dataclasses
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry
from robustbench_vlm.models.device import choose_device

if TYPE_CHECKING:
    # This module imports torch, and `vlmbench --help` must not import torch.
    from robustbench_vlm.engine.resources import Resources

Job = TypeVar("Job")
"""A unit of work for one worker. It must be picklable. Messages show `str(job)`."""
Answer = TypeVar("Answer")
"""The return value of a job. It must be picklable."""


class WorkerDied(UserError):
    """Raised if a worker ends without an answer: it was killed, it ran out of memory, or its machine failed."""


class RunJobs(Protocol):
    """Run jobs on workers and yield each job with its answer as soon as it is finished, in any order.

    If a job raises a UserError in a worker, the calling process raises it too. Any other exception of a job is raised
    as a RuntimeError with the worker's traceback. If a worker ends without an answer, WorkerDied is raised with the
    name of the job. Closing the iterator stops the running jobs.
    """

    def __call__(
        self, function: Callable[[Job], Answer], jobs: Sequence[Job], resources: "Resources"
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Call `function` on every job. The device and the number of workers must be set in `resources`."""


@dataclass(frozen=True)
class Engine:
    """An execution engine. Each field is a function."""

    prepare: Callable[["Resources"], None]
    """A function that starts slow preparations before the request is resolved, such as a connection to a cluster. It
    raises UserError if the engine cannot be used."""
    count_workers: Callable[["Resources"], int]
    """A function that returns the default number of workers (for `workers=0`). The device must be set in its
    argument."""
    run_jobs: RunJobs


ENGINES = Registry(
    "engine",
    {
        "local": "robustbench_vlm.engine.local:LOCAL",
        "ray": "robustbench_vlm.engine.ray_cluster:RAY",
    },
)


def resolve_resources(resources: "Resources") -> "Resources":
    """Return the resources with the device and the number of workers filled in.

    Raises UserError if a GPU is requested but does not exist. The batch size is not changed. `resolve.resolve` chooses
    it for the models of a request.
    """
    known = dataclasses.replace(resources, device=choose_device(resources.device))
    engine: Engine = ENGINES.load(resources.engine)
    return dataclasses.replace(known, workers=resources.workers or engine.count_workers(known))


def attempt(function: Callable[[Any], Any], job: Any) -> Any:
    """Call `function` on a job and return its answer. If the job fails, return the exception as a picklable value.

    The process that receives the exception raises it. An exception that is not a UserError becomes a RuntimeError with
    the worker's traceback.
    """
    try:
        return function(job)
    except UserError as error:
        return UserError(str(error))
    # The exception is returned, because the process that receives the answer raises it.
    except Exception:
        return RuntimeError(f"a worker failed on {job!r}:\n{traceback.format_exc()}")
