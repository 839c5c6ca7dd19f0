"""Test the local engine: it returns every shard once and raises the failures of workers."""

import functools
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.backends import WorkerDied
from robustbench_vlm.engine.cell import Shard
from robustbench_vlm.engine.local import run_jobs
from robustbench_vlm.engine.resources import Resources

SHARDS = [Shard(0, n, n + 1, "f") for n in range(7)]


def named(shard: Shard) -> list[SampleResult]:
    time.sleep(0.01 * (shard.start % 3))
    return [SampleResult(str(shard.start), "", 0, 0, 0, "", 0.0, os.getpid(), 0, 0.0, "")]


def failing(how: str, shard: Shard) -> list[SampleResult]:
    if shard.start == 4:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("what the user did") if how == "user" else KeyError("ours")
    return named(shard)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_shard_is_returned_once(workers: int) -> None:
    answers = list(run_jobs(named, SHARDS, Resources(workers=workers)))
    assert sorted(shard.start for shard, _ in answers) == list(range(7))
    assert all(results[0].sample_id == str(shard.start) for shard, results in answers)
    processes = {results[0].forward for _, results in answers}
    assert processes == {os.getpid()} if workers == 1 else 1 < len(processes) <= 3


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("user", UserError, "^what the user did$"),
        ("ours", RuntimeError, "start=4.*\n(.*\n)*.*KeyError: 'ours'"),
        ("killed", WorkerDied, "samples 4 to 5 of cell 0 ended with exit code -9.*same command again"),
    ],
)
def test_failures_of_a_worker_are_raised(how: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(run_jobs(functools.partial(failing, how), SHARDS, Resources(workers=2)))


def alive(processes: Sequence[int]) -> list[int]:
    return [process for process in processes if Path("/proc", str(process)).exists()]


def test_closing_the_iterator_stops_the_workers() -> None:
    answers = run_jobs(named, SHARDS, Resources(workers=2))
    _, results = next(answers)
    assert alive([results[0].forward])
    answers.close()
    assert not alive([results[0].forward])
