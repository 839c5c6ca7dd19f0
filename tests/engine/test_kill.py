"""Test that a run that is killed at random times and started again gives the records of an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import robustbench_vlm

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


@pytest.fixture(scope="module")
def unbroken(taught_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    subprocess.run(command(out, taught_card, 1), check=True, env=environment(), capture_output=True)
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


@pytest.mark.parametrize(("workers", "kills"), [(1, 4), (2, 2)])
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
    subprocess.run(command(tmp_path, taught_card, 1), check=True, env=environment(), capture_output=True)
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
    answer = subprocess.run(
        command(tmp_path, taught_card, 1), check=True, env=environment(), capture_output=True, text=True
    )
    first = next(int(line) for line in answer.stdout.splitlines() if line.isdigit())
    assert first == 4 * len(written)
    assert written.items() <= records(tmp_path).items()


def test_ctrl_c_in_a_larger_run_keeps_the_scores_of_a_finished_run(taught_card: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "robustbench_vlm"]
    options = ["--attack", "pgd-100", "--eps", "1/255", "--samples", "8", "--workers", "1", "--dataset", "colours"]
    small = [*program, "run", "--model", str(taught_card), *options]
    larger = [*small, "--dataset", "textures", "--dataset", "shapes", "--dataset", "day-night"]
    compare = [*program, "compare", "runs/mini/taught", "--attack", "pgd-100", "--eps", "1/255", "--json"]
    settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "check": True}
    subprocess.run(small, **settings)
    finished = subprocess.run(compare, **settings).stdout
    manifest = tmp_path / "runs" / "mini" / "taught" / "pgd-100" / "manifest.json"
    with subprocess.Popen(larger, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while '"unfinished"' not in manifest.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert '"unfinished"' in manifest.read_text()
    assert subprocess.run(compare, **settings).stdout == finished
