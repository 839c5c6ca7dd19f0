"""Test that a run that is killed at random times and started again gives the records of an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from driver import request_of

import robustbench_vlm
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.engine.run import run

DRIVER = Path(__file__).parent / "driver.py"
SAMPLES = 2 * 3 * 16


def command(out: Path, card: Path, workers: int) -> list[str]:
    return [sys.executable, str(DRIVER), str(out), str(card), str(workers)]


def records(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


def environment() -> dict[str, str]:
    # One thread, because the number of threads may change the order of a sum.
    source = str(Path(robustbench_vlm.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let the runs in this process use one thread, like those in other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def finish(out: Path, card: Path) -> list[int]:
    """Make the run in this process, which does not import torch again. Return the reported sample counts."""
    counts: list[int] = []
    run(request_of(out, card, 1), on_progress=lambda progress: counts.append(progress.done))
    return counts


@pytest.fixture(scope="module")
def unbroken(taught_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    finish(out, taught_card)
    return out


def interrupt(process: "subprocess.Popen[str]", after: int, pause: float, number: signal.Signals) -> list[int]:
    """Send a signal `pause` seconds after more than `after` samples are done; return the printed sample counts."""
    counts: list[int] = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit():
            counts.append(int(line))
            if counts[-1] > after:
                time.sleep(pause)
                process.send_signal(number)
                after = SAMPLES
    process.wait()
    return counts


@pytest.mark.parametrize(("workers", "kills"), [(1, 2), (2, 1)])
def test_the_same_command_finishes_a_killed_run(
    taught_card: Path, unbroken: Path, tmp_path: Path, workers: int, kills: int
) -> None:
    choose = random.Random(kills)
    done = 0
    for _ in range(kills):
        with subprocess.Popen(
            command(tmp_path, taught_card, workers), stdout=subprocess.PIPE, text=True, env=environment()
        ) as process:
            counts = interrupt(process, done, choose.uniform(0, 0.15), signal.SIGKILL)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert counts[0] >= done  # written samples are not computed again
        done = counts[-1]
    assert done > 0
    finish(tmp_path, taught_card)
    assert records(tmp_path) == records(unbroken)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"}
    assert left == {".lock", "manifest.json", "scores.csv"}
    scores = [next(out.rglob("scores.csv")).read_text() for out in (tmp_path, unbroken)]
    assert scores[0] == scores[1]


def test_ctrl_c_keeps_all_written_records(taught_card: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path, taught_card, 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        counts = interrupt(process, 0, 0, signal.SIGINT)
        assert process.stderr is not None
        stderr = process.stderr.read()
    assert process.returncode not in (0, -signal.SIGKILL) and "KeyboardInterrupt" in stderr
    written = records(tmp_path)
    assert 4 * len(written) >= counts[-1] > 0
    assert finish(tmp_path, taught_card)[0] == 4 * len(written)
    assert written.items() <= records(tmp_path).items()


def test_ctrl_c_in_a_larger_run_keeps_the_scores_of_a_finished_run(
    taught_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--attack", "pgd-100", "--eps", "1/255", "--samples", "8", "--workers", "1", "--dataset", "colours"]
    small = ["run", "--model", str(taught_card), *options]
    more = ["--dataset", "textures", "--dataset", "shapes", "--dataset", "day-night"]
    larger = [sys.executable, "-m", "robustbench_vlm", *small, *more]
    compare = ["compare", "runs/mini/taught", "--attack", "pgd-100", "--eps", "1/255", "--json"]
    assert run_command(small) == 0
    capsys.readouterr()
    assert run_command(compare) == 0
    finished = capsys.readouterr().out
    manifest = tmp_path / "runs" / "mini" / "taught" / "pgd-100" / "manifest.json"
    with subprocess.Popen(larger, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 300
        while '"unfinished"' not in manifest.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert '"unfinished"' in manifest.read_text()
    # A new process reads all files again.
    again = [sys.executable, "-m", "robustbench_vlm", *compare]
    assert subprocess.run(again, check=True, env=environment(), capture_output=True, text=True).stdout == finished
