"""benchmarks/gpu.py on the CPU at reduced size: each part runs, and a failing part does not stop the next one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["verdicts", "determinism", "out of memory", "throughput", "training steps", "end to end"]


def gpu_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_part_runs_at_reduced_size(tmp_path: Path) -> None:
    answer = gpu_script("--out", str(tmp_path / "gpu.json"), "--part", *PARTS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == PARTS and found["size"] == "reduced"
    assert not any("error" in part or "skipped" in part for part in found["parts"].values())
    assert all(row["different"] == 0 for row in found["parts"]["verdicts"]["rows"] if row["precision"] == "float32")
    assert found["parts"]["determinism"]["records"] == 0
    assert answer.stdout.rstrip().splitlines()[-1].startswith("    ")


def test_parts_are_skipped_if_too_little_time_is_left(tmp_path: Path) -> None:
    answer = gpu_script("--out", str(tmp_path / "gpu.json"), "--part", "verdicts", "end to end", "--seconds", "1")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert answer.returncode == 0 and all("were left" in part["skipped"] for part in found.values())


@pytest.mark.parametrize("broken", ["verdicts"])
def test_a_failing_part_is_reported_and_the_next_part_runs(broken: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys, dataclasses; sys.path.insert(0, sys.argv[1]);"
        "import gpu; from gpu_parts.settings import reduced_size\n"
        "settings = dataclasses.replace(reduced_size(), models=('unknown',))\n"
        "from pathlib import Path\n"
        "whole = gpu.run_parts(['verdicts', 'out of memory'], settings, Path(sys.argv[2]), 400)\n"
        "assert 'error' in whole['parts']['verdicts'] and whole['parts']['out of memory']['different'] == 0\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(tmp_path / "gpu.json")]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "error" in json.loads((tmp_path / "gpu.json").read_text())["parts"][broken]
