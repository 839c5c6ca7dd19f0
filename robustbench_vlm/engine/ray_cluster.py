"""The ray engine: runs jobs as tasks of a ray cluster of one or more machines and returns the records to the driver.

A task whose process or machine fails is given to another one. Every machine needs this version of the package, and
the cards, data and weights under the same paths as the driver.
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
"""How often a task is tried again after its process or machine failed."""
_LOOK_SECONDS = 10.0
"""Interval at which the cluster is checked while no task ends."""
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_STORE_BYTES = 2**27
"""Shared memory of ray on this machine; the records of a group are some hundred kilobytes."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": ".*"}
"""Settings that ray reads when it is imported: no usage report, and no output of other machines on stdout."""
_COUNTED = {"cpu": "CPU", "cuda": "GPU"}
"""Ray's names of the resource of which each worker has one."""


def run_jobs(
    function: Callable[[Job], Answer], jobs: Sequence[Job], resources: Resources
) -> Generator[tuple[Job, Answer], None, None]:
    """Run jobs as `backends.RunJobs` describes, at most one per worker at a time.

    Each task requests as many CPU cores as a worker of the local engine has, and one GPU if the device is "cuda".
    """
    ray = _connected(resources.address)
    workers = min(resources.workers, len(jobs))
    threads = _threads(_machines(ray, resources.device), workers)
    gpus = 1 if resources.device == "cuda" else 0
    # Without max_calls a process with a GPU ends after each task, and the next one loads the model again.
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
    """Connect this process to the cluster at the address, or start a cluster on this machine.

    An existing connection is used. Raises UserError if ray is not installed, and within a minute if no cluster
    answers.
    """
    _connected(resources.address)


def count_workers(resources: Resources) -> int:
    """Return the number of GPUs, or CPU cores, of the machines that are alive; raise UserError if it is 0."""
    found = sum(count for _, count in _machines(_connected(resources.address), resources.device))
    if not found:
        raise UserError(
            f"no machine of the ray cluster has a {_COUNTED[resources.device]} for the workers: start machines by `ray"
            " start --address=HOST:PORT`, and give the same command again"
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
            f"ray gave up on {job}: {_last(str(error))}; see that every machine has this version of"
            " robustbench_vlm and memory enough, and give the same command again"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _machines(ray: Any, device: str) -> list[tuple[int, int]]:
    """Return (CPU cores, CPU cores or GPUs by device) of every machine that is alive and has both."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [(int(each.get("CPU", 0)), int(each.get(_COUNTED[device], 0))) for each in alive]
    return [each for each in counts if all(each)]


def _threads(machines: Sequence[tuple[int, int]], workers: int) -> int:
    """Return the threads of a worker: as in the local engine, but at most the cores of the smallest machine."""
    cpus = [count for count, _ in machines]
    return max(1, min(sum(cpus) // workers, min(cpus, default=1)))


def _connected(address: str) -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError("the engine ray needs the package ray: pip install 'robustbench_vlm[ray]'") from error
    if ray.is_initialized():
        return ray
    if address:
        _check_answers(address)
    own = {} if address else {"num_cpus": cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or "this machine"
        raise UserError(f"ray on {where} cannot be used: {error}; compare the versions of ray and Python") from error
    return ray


def _check_answers(address: str) -> None:
    """Raise UserError if no ray cluster answers: ray would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--address {address!r} is not HOST:PORT, as in --address 10.0.0.1:6379")
    advice = f"start its head by `ray start --head --port={port}`, or leave --address out to use this machine"
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"nothing answers at {address}: {error}; {advice}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"what answers at {address} is no ray cluster: {advice}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"the ray cluster at {address} does not take this process: {_last(error.stderr)}") from error


def _last(text: str) -> str:
    """Return the last line of ray's message, which has the cause."""
    return (text.strip().splitlines() or ["for no reason that is given"])[-1]


RAY = Engine(connect, count_workers, run_jobs)
