"""Test the ray engine on two real nodes. One node is killed, and the records equal those of the local engine."""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import request_of
from hypothesis import given
from hypothesis import strategies as st

import robustbench_vlm
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine import ray_cluster as cluster
from robustbench_vlm.engine.local import LOCAL
from robustbench_vlm.engine.ray_cluster import RAY
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run

DRIVER = Path(__file__).parent / "driver.py"
SAMPLES = 2 * 3 * 8
TASK = "ray::_work"
"""Title of a ray process while it runs a task."""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    # One thread, as in test_kill. A token, because the ports of a cluster are open to the network. A short period of
    # the health check, so that ray notices a lost machine within seconds.
    quick = {"RAY_health_check_period_ms": "500"}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    source = str(Path(robustbench_vlm.__file__).parents[1])
    return {**os.environ, **token, **quick, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}


@pytest.fixture(scope="module")
def start_node(environment: dict[str, str]) -> Iterator[Callable[..., int]]:
    """Return a function that starts a node with one CPU and returns the session of its processes."""
    pytest.importorskip("ray")
    sessions: list[int] = []

    def start(*arguments: str) -> int:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", *arguments]
        small = ["--object-store-memory=100000000", "--disable-usage-stats"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # All processes that the command starts stay in its session, so the session identifies the node.
        with subprocess.Popen([*command, *small], env=environment, start_new_session=True, **quiet) as starter:
            sessions.append(starter.pid)
        assert starter.returncode == 0
        return starter.pid

    yield start
    for session in sessions:
        kill(session)


@pytest.fixture(scope="module")
def head(start_node: Callable[..., int]) -> Iterator[str]:
    """Start the head of a cluster and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The paths of ray's sockets must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    start_node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    yield f"127.0.0.1:{port}"
    shutil.rmtree(folder, ignore_errors=True)


def kill(node: int) -> None:
    """Kill all processes of a node at once, to simulate a machine that loses power."""
    for process, _ in processes(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes(node: int) -> list[tuple[int, str]]:
    """Return the ids and titles of the processes in the session of a node."""
    found = subprocess.run(["ps", "-eo", "sess=,pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in found.splitlines()]
    return [(int(row[1]), row[2]) for row in rows if row[0] == str(node)]


def is_busy(node: int) -> bool:
    return any(TASK in title for _, title in processes(node))


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def records(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def node(head: str, start_node: Callable[..., int]) -> int:
    """Start the second node and return its session. The last test that uses it kills it."""
    return start_node(f"--address={head}")


def start_run(out: Path, card: Path, address: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DRIVER), str(out), str(card), "2", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_failures_of_a_task_are_raised_in_the_driver(head: str, node: int, environment: dict[str, str]) -> None:
    answer = subprocess.run([sys.executable, __file__, head], env=environment, capture_output=True, text=True)
    user, ours, killed = answer.stdout.split("\0")[:-1]
    assert user == "UserError: what the user did"
    assert ours.startswith("RuntimeError: a worker failed on 1") and ours.endswith("KeyError: 'ours'\n")
    assert killed.startswith("WorkerDied: ray could not finish 1: ") and "same command again" in killed
    assert answer.stderr == ""


def test_ctrl_c_ends_the_tasks(
    taught_card: Path, tmp_path: Path, head: str, node: int, environment: dict[str, str]
) -> None:
    with start_run(tmp_path, taught_card, head, environment) as process:
        wait_until(lambda: is_busy(node))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL) and "KeyboardInterrupt" in stderr
    wait_until(lambda: not is_busy(node), seconds=20)


def test_a_run_continues_after_a_node_is_lost_and_gives_the_records_of_the_local_engine(
    taught_card: Path, tmp_path: Path, head: str, node: int, environment: dict[str, str]
) -> None:
    with start_run(tmp_path / "ray", taught_card, head, environment) as process:
        wait_until(lambda: is_busy(node))
        kill(node)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    first, *counts = stdout.splitlines()
    assert first == "planning" and [*map(int, counts)][-1] == SAMPLES and stderr == ""
    run(request_of(tmp_path / "local", taught_card, 2))
    assert records(tmp_path / "ray") == records(tmp_path / "local") != {}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "must be HOST:PORT.*got 'nowhere'"),
        (":6379", "must be HOST:PORT.*got ':6379'"),
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1: .*ray start --head --port=1"),
        ("127.0.0.1:99999", "nothing answers at 127.0.0.1:99999"),
    ],
)
def test_an_address_without_a_cluster_raises_user_error(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=message):
        RAY.prepare(Resources(engine="ray", address=address))


def test_an_address_of_another_service_raises_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="is not a ray cluster"):
        RAY.prepare(Resources(engine="ray", address=f"127.0.0.1:{silent.getsockname()[1]}"))


def test_missing_package_and_wrong_engine_raise_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'robustbench_vlm\[ray\]'"):
        RAY.prepare(Resources(engine="ray"))
    with pytest.raises(UserError, match="add --engine ray"):
        LOCAL.prepare(Resources(address="127.0.0.1:6379"))
    with pytest.raises(UserError, match=r"unknown engine 'roy'. Did you mean ray\?"):
        run(Request(models=("clip",), resources=Resources(engine="roy")))


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8)), max_size=5), st.integers(1, 100))
def test_a_task_fits_on_every_machine(machines: list[tuple[int, int]], workers: int) -> None:
    threads = cluster._threads(machines, workers)
    assert threads >= 1 and all(threads <= cpus for cpus, _ in machines)
    if len(machines) == 1:
        assert threads == max(1, machines[0][0] // workers)


def failing(how: str, number: int) -> int:
    if number == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("what the user did") if how == "user" else KeyError("ours")
    return number


def main() -> None:
    """Print the exceptions that three kinds of failure raise in the driver. Lost tasks are not retried."""
    cluster._RETRIES = 0
    resources = Resources("cpu", 2, engine="ray", address=sys.argv[1])
    for how in ("user", "ours", "killed"):
        try:
            # The killed worker gets one job only, because ray may lose the answers of other jobs with it.
            list(RAY.run_jobs(functools.partial(failing, how), [1] if how == "killed" else range(3), resources))
        except Exception as error:
            print(f"{type(error).__name__}: {error}", end="\0")


if __name__ == "__main__":
    main()
