"""Tests of the communication between processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.training.distributed import Processes

_DRIVER = """
import random, sys, torch
from robustbench_vlm.training.distributed import Processes
torch.set_num_threads(1)
processes, rank = Processes("cpu"), torch.distributed.get_rank()
draw = random.Random(0)
numbers = [draw.getrandbits(bits) for bits in (28, 60) for _ in range(50)]
assert all(processes.agree(number) for number in numbers)
assert all(not processes.agree(number + (rank == processes.count - 1)) for number in numbers)
assert all(not processes.agree(-number if rank == 1 else number) for number in numbers)
processes.wait()
torch.distributed.destroy_process_group()
if processes.is_main:
    open(sys.argv[1], "w").write(f"{processes.count} processes")
"""


def test_processes_agree_only_on_equal_integers(tmp_path: Path) -> None:
    driver, result = tmp_path / "driver.py", tmp_path / "result"
    driver.write_text(_DRIVER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run([sys.executable, *launch, str(driver), str(result)], check=True, timeout=240)
    assert result.read_text() == "3 processes"


def test_a_single_process_agrees_with_itself() -> None:
    processes = Processes("cpu")
    assert processes.agree(3) and processes.agree(2**62) and processes.count == 1


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="cpu or cuda"):
        Processes("gpu:7")
