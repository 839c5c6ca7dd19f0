"""Local engine: run jobs in this process, or in one process per CPU core or GPU of this machine."""

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Generic

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.backends import Answer, Engine, Job, WorkerDied, attempt
from robustbench_vlm.engine.resources import Resources, cores, without_program

_MALLOPT = {-3: 2**25, -1: 2**31 - 1, -2: 2**26}
"""Options of mallopt with their values in bytes: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD."""
_SOCKET_NAME = len("listener-") + 8
"""The number of characters in the names of multiprocessing's sockets."""
_IMPORTED = ["open_clip", "robustbench_vlm.engine.shard"]
"""Modules that the fork server imports in advance, so that workers start faster."""
# "fork" is not safe: a forked process with running threads may hang, and CUDA does not support it. "forkserver" forks
# a process that has only imported modules. macOS supports only "spawn".
if sys.platform == "linux":
    _CONTEXT = multiprocessing.get_context("forkserver")
else:
    _CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    connection: Connection
    job: Job | None = None


def run_jobs(
    function: Callable[[Job], Answer], jobs: Sequence[Job], resources: Resources
) -> Generator[tuple[Job, Answer], None, None]:
    """Run jobs in processes of this machine. `backends.RunJobs` describes the arguments and errors.

    If there is only one worker, the jobs run in this process.
    """
    workers = min(resources.workers, len(jobs))
    if workers <= 1:
        keep_freed_memory()
        for job in jobs:
            yield job, function(job)
        return
    _choose_socket_folder()
    crew: list[_Worker[Job]] = []
    try:
        crew = [_start(function, number, workers) for number in range(workers)]
        yield from _distribute(crew, deque(jobs))
    finally:
        _stop(crew)


def expect_workers(resources: Resources) -> None:
    """Start the fork server. It imports the modules for the workers while this process resolves the request.

    Raises UserError if `resources` has an address, because this engine uses only this machine.
    """
    if resources.address:
        raise UserError(
            f"--address {resources.address} is only for the ray engine, but the engine is local: add --engine ray, or"
            " leave --address out"
        )
    if resources.workers == 1 or _CONTEXT.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver

    _choose_socket_folder()
    _CONTEXT.set_forkserver_preload(_IMPORTED)
    with _ignored_interrupts():
        forkserver.ensure_running()


def _choose_socket_folder() -> None:
    """Make multiprocessing create its sockets in another folder if the temporary folder is unsuitable.

    The path of a Unix socket has at most 107 bytes, and some file systems do not support sockets. Raises UserError if
    no folder can be used.
    """
    settings: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" in settings or _CONTEXT.get_start_method() != "forkserver":
        return
    given = tempfile.gettempdir()
    for parent in (given, "/tmp", "/var/tmp", "/dev/shm"):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="vlmbench-", dir=parent)
            # Remove the folder last, because multiprocessing needs it until the process ends.
            Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
            _check_sockets(folder)
            settings["tempdir"] = folder
            return
    raise UserError(
        f"the temporary folder {given} cannot hold the sockets of worker processes, because its path is too long or its"
        " file system does not support them: set TMPDIR to another folder, or give --workers 1"
    )


def _check_sockets(folder: str) -> None:
    """Raise OSError if multiprocessing cannot create sockets in a folder."""
    path = Path(folder) / ("x" * _SOCKET_NAME)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0o600)
    path.unlink()


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Return a context manager. Processes that are started in its body ignore Ctrl-C.

    Without this context manager, a process prints a traceback if Ctrl-C is pressed during its imports.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python sets signal handlers only in the main thread.
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def count_workers(resources: Resources) -> int:
    """Return the number of GPUs that this process may use. If the device is "cpu", return the number of CPU cores."""
    return torch.cuda.device_count() if resources.device == "cuda" else cores()


def keep_freed_memory() -> None:
    """Make this process keep freed memory for later use.

    Without this, a third of the run time would be needed to return memory to the operating system and to request it
    again. The function has an effect only with the GNU C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name, value in _MALLOPT.items():
            library.mallopt(name, value)


def _distribute(crew: Sequence[_Worker[Job]], waiting: deque[Job]) -> Generator[tuple[Job, Any], None, None]:
    """Send the waiting jobs to the workers, and yield each job with its answer as soon as it is finished."""
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
        # If the worker process has ended, sending raises BrokenPipeError. `_answer` then raises WorkerDied.
        with contextlib.suppress(BrokenPipeError):
            worker.connection.send(worker.job)


def _answer(worker: _Worker[Job]) -> Any:
    try:
        answer = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(5)
        raise WorkerDied(
            f"the worker for {worker.job} ended with exit code {worker.process.exitcode}: it was killed or ran out of"
            " memory; run the same command again, with fewer --workers or a smaller --batch-size if memory ran out"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _start(function: Callable[[Job], Any], number: int, workers: int) -> _Worker[Job]:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, function, number, max(1, cores() // workers)), daemon=True)
    with without_program(function):
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
    # Ctrl-C sends SIGINT to every process of the terminal. Only the parent process handles it, so a worker ignores it.
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
        connection.send(attempt(function, job))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


LOCAL = Engine(expect_workers, count_workers, run_jobs)
