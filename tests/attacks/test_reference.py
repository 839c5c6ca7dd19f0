"""A real adversarially trained network on real images against the stored verdicts of the official AutoAttack."""

import runpy
import sys
from pathlib import Path

import pytest

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# As for a script that is run: its own folder is where it looks for what it shares with the others.
sys.path.append(str(BENCHMARKS))
BENCHMARK = runpy.run_path(str(BENCHMARKS / "autoattack.py"))
DATA: Path = BENCHMARK["DATA"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data are not there")
@pytest.mark.parametrize("eps", ["8/255", "2/255"])
def test_our_autoattack_agrees_with_the_official_one(eps: str) -> None:
    model, batch, official = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], eps)
    robust = attack_samples(model, batch, load_attack("autoattack"), batch_size=128).robust
    assert (robust.sum() - official.sum()) / len(official) <= 0.005
    assert (robust == official).float().mean() >= 0.98
