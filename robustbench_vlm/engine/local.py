"""The local engine: jobs in this process or in several, one a core or GPU, as (job, answer) in any order."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from robustbench_vlm.engine.estimate import cores
from robustbench_vlm.errors import UserError

Job = TypeVar("Job")
"""What a worker is handed: names and numbers, which travel by pickle; its text says what it is."""
Answer = TypeVar("Answer")


_MALLOPT = {-3: 2**25, -1: 2**31 - 1, -2: 2**26}
"""GNU C library: blocks to take from the heap (at most so large), free memory to keep on top, and to take at once."""
_IMPORTED = ["open_clip", "robustbench_vlm.engine.shard"]
"""What the process that workers are copied from imports, seconds before the first of them is needed."""
# Not fork: a copy of a process with running threads may hang, and CUDA refuses it. The process that the fork server
# copies has only imported. Apple's libraries do not bear even that.
if sys.platform == "linux":
    _CONTEXT = multiprocessing.get_context("forkserver")
else:
    _CONTEXT = multiprocessing.get_context("spawn")


class WorkerDied(UserError):
    """A worker process ended without an answer: killed from outside, or out of memory."""


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    connection: Connection
    job: Job | None = None


def run_jobs(
    function: Callable[[Job], Answer], jobs: Sequence[Job], *, workers: int
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield every job with the function's answer as soon as it is there.

    What a worker raises is raised here: a UserError as it is, all else as RuntimeError with the worker's traceback.
    Raises WorkerDied, naming the job, where a process is gone. Closing the iterator ends all workers.
    """
    if workers == 1 or len(jobs) <= 1:
        keep_freed_memory()
        for job in jobs:
            yield job, function(job)
        return
    workers = min(workers, len(jobs))
    crew: list[_Worker[Job]] = []
    try:
        crew = [_start(function, number, workers) for number in range(workers)]
        yield from _hand_out(crew, deque(jobs))
    finally:
        _stop(crew)


def expect_workers(workers: int) -> None:
    """Begin to import what workers need, in the process that they will be copied from, while others make the plan.

    `workers` is as in `Resources`; one worker is this process itself.
    """
    if workers == 1 or _CONTEXT.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    _CONTEXT.set_forkserver_preload(_IMPORTED)
    forkserver.ensure_running()


def keep_freed_memory() -> None:
    """Let this process keep memory that it freed: to give it back after every pass costs a third of the time.

    Only the GNU C library can be told; with any other one nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name, value in _MALLOPT.items():
            library.mallopt(name, value)


def _hand_out(crew: Sequence[_Worker[Job]], waiting: deque[Job]) -> Generator[tuple[Job, Any], None, None]:
    for worker in crew:
        _give(worker, waiting)
    while busy := {worker.connection: worker for worker in crew if worker.job is not None}:
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            job, answer = worker.job, _answer(worker)
            assert job is not None
            _give(worker, waiting)
            yield job, answer


def _give(worker: _Worker[Job], waiting: deque[Job]) -> None:
    worker.job = waiting.popleft() if waiting else None
    if worker.job is not None:
        # A process that is gone shows itself when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            worker.connection.send(worker.job)


def _answer(worker: _Worker[Job]) -> Any:
    try:
        answer = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(5)
        raise WorkerDied(
            f"the worker for {worker.job} ended with exit code {worker.process.exitcode}: it was killed, or memory ran"
            " out; give the same command again, with fewer --workers or a smaller --batch if it was memory"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _start(function: Callable[[Job], Any], number: int, workers: int) -> _Worker[Job]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, function, number, max(1, cores() // workers)), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _stop(crew: Sequence[_Worker[Job]]) -> None:
    for worker in crew:
        worker.connection.close()
        worker.process.terminate()
    for worker in crew:
        worker.process.join()


def _work(connection: Connection, function: Callable[[Any], Any], number: int, threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(function(job))
        except UserError as error:
            connection.send(UserError(str(error)))
        except Exception:  # it is raised again in the parent, whatever it is
            connection.send(RuntimeError(f"a worker failed on {job!r}:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
