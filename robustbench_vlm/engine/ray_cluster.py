"""Ray engine: run jobs on a ray cluster of one or more machines. Each job is a ray task.

The driver is the process that started the run. It receives and writes all records. If a task's process or machine
fails, ray runs the task again in another process. All machines need one version of this package. The model cards, data
and weights must have equal paths on all machines.
"""

import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.backends import Answer, Engine, Job, WorkerDied, attempt
from robustbench_vlm.engine.local import keep_freed_memory
from robustbench_vlm.engine.resources import Resources, cores

_RETRIES = 5
"""Largest number of retries of a task after its process or machine failed."""
_LOOK_SECONDS = 10.0
"""Seconds to wait for a task to finish. After this time, the state of the cluster is checked."""
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
"""Seconds to wait for a connection to the cluster, and seconds to wait for an answer from it."""
_STORE_BYTES = 2**27
"""Bytes of shared memory for ray on this machine. The records of one task take only a few hundred kilobytes."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}
"""Environment variables that ray reads when it is imported. They turn off usage reports and the output of other
machines.
"""
_COUNTED = {"cpu": "CPU", "cuda": "GPU"}
"""Name of ray's resource for each device. The amount of the resource in a machine is the number of its workers."""


def run_jobs(
    function: Callable[[Job], Answer], jobs: Sequence[Job], resources: Resources
) -> Generator[tuple[Job, Answer], None, None]:
    """Run jobs on the cluster. `backends.RunJobs` describes the arguments and errors. A worker runs one job at a time.

    Each task requests as many CPU cores as a worker of the local engine uses, and one GPU if the device is "cuda".
    """
    ray = _connected(resources.address)
    workers = min(resources.workers, len(jobs))
    threads = _threads(_machines(ray, resources.device), workers)
    gpus = 1 if resources.device == "cuda" else 0
    # By default, ray ends a process with a GPU after each task, and the next process would load the model again.
    task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_RETRIES, max_calls=0)(_work)
    shared = ray.put(function)
    waiting, pending = deque(jobs), dict[Any, Job]()
    try:
        while waiting or pending:
            while waiting and len(pending) < workers:
                job = waiting.popleft()
                pending[task.remote(shared, job, threads)] = job
            done, _ = ray.wait(list(pending), timeout=_LOOK_SECONDS)
            if not done:
                count_workers(resources)
            for reference in done:
                job = pending.pop(reference)
                yield job, _answer(ray, reference, job)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def connect(resources: Resources) -> None:
    """Connect this process to the cluster at `resources.address`, or start a cluster on this machine.

    An existing connection is used. Raises UserError if ray is not installed, or if no cluster answers within a minute.
    """
    _connected(resources.address)


def count_workers(resources: Resources) -> int:
    """Return the number of GPUs in all running machines of the cluster.

    If the device is "cpu", return the number of CPU cores. Raises UserError if the number is 0.
    """
    found = sum(count for _, count in _machines(_connected(resources.address), resources.device))
    if not found:
        raise UserError(
            f"no machine of the ray cluster has a {_COUNTED[resources.device]} for the workers: add machines with `ray"
            " start --address=HOST:PORT`, and run the same command again"
        )
    return found


def _work(function: Callable[[Any], Any], job: Any, threads: int) -> Any:
    keep_freed_memory()
    torch.set_num_threads(threads)
    return attempt(function, job)


def _answer(ray: Any, reference: Any, job: object) -> Any:
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise WorkerDied(
            f"ray could not finish {job}: {_last(str(error))}; check that every machine has the same version of"
            " robustbench_vlm and enough memory, and run the same command again"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _machines(ray: Any, device: str) -> list[tuple[int, int]]:
    """Return (CPU cores, GPUs) for each running machine that can run a worker.

    If `device` is "cpu", both numbers are the number of CPU cores.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [(int(each.get("CPU", 0)), int(each.get(_COUNTED[device], 0))) for each in alive]
    return [each for each in counts if all(each)]


def _threads(machines: Sequence[tuple[int, int]], workers: int) -> int:
    """Return the number of threads of a worker. It is at most the number of cores of the smallest machine."""
    cpus = [count for count, _ in machines]
    return max(1, min(sum(cpus) // workers, min(cpus, default=1)))


def _connected(address: str) -> Any:
    """Import ray, connect to the cluster if this process is not connected yet, and return the module ray."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "the package ray is not installed, but the engine ray needs it: pip install 'robustbench_vlm[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    if address:
        _check_answers(address)
    own = {} if address else {"num_cpus": cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise UserError(
            f"ray on {where} cannot be used: {error}; check that all machines have the same versions of ray and Python"
        ) from error
    return ray


def _check_answers(address: str) -> None:
    """Raise UserError if no ray cluster answers at an address.

    Without this check, ray would wait for minutes and then end the process.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--address must be HOST:PORT, such as 10.0.0.1:6379, got {address!r}")
    advice = f"start a cluster with `ray start --head --port={port}`, or leave --address out to use this machine"
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"nothing answers at {address}: {error}; {advice}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"the service at {address} is not a ray cluster: {advice}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"the ray cluster at {address} refused the connection: {_last(error.stderr)}; check its token and its"
            " version of ray"
        ) from error


def _last(text: str) -> str:
    """Return the last line of an error message of ray, because this line gives the cause."""
    return (text.strip().splitlines() or ["ray gave no reason"])[-1]


RAY = Engine(connect, count_workers, run_jobs)
