"""Comparison with stored verdicts of pyautoattack on an adversarially trained network and real images."""

import runpy
import sys
from pathlib import Path

import pytest

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# The benchmark imports modules from its own folder, which is on sys.path only if it runs as a script.
sys.path.append(str(BENCHMARKS))
BENCHMARK = runpy.run_path(str(BENCHMARKS / "autoattack.py"))
DATA: Path = BENCHMARK["DATA"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data are not on this machine")
@pytest.mark.parametrize("eps", ["8/255", "2/255"])
def test_autoattack_agrees_with_stored_verdicts_of_pyautoattack(eps: str) -> None:
    model, batch, official = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], eps)
    robust = attack_samples(model, batch, load_attack("autoattack"), batch_size=128).robust
    assert (robust.sum() - official.sum()) / len(official) <= 0.005
    assert (robust == official).float().mean() >= 0.98
