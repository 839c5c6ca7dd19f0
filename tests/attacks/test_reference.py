"""Comparison with stored verdicts of pyautoattack on an adversarially trained network and real images."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# The benchmark imports modules from its own folder, which is on sys.path only if it runs as a script.
sys.path.append(str(BENCHMARKS))
BENCHMARK = runpy.run_path(str(BENCHMARKS / "autoattack.py"))
DATA: Path = BENCHMARK["DATA"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data are not on this machine")
@pytest.mark.parametrize(("eps", "step", "count"), [("8/255", 2, 100), ("2/255", 3, 67)])
def test_autoattack_agrees_with_stored_verdicts_of_pyautoattack(eps: str, step: int, count: int) -> None:
    model, batch, official = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], eps)
    # A robust sample costs a second. benchmarks/autoattack.py compares all samples.
    chosen = torch.arange(0, len(official), step)
    batch, official = batch.at(chosen), official[chosen]
    assert len(official) == count and 0.1 * count < official.sum() < 0.6 * count
    robust = attack_samples(model, batch, load_attack("autoattack"), batch_size=128).robust
    assert (robust.sum() - official.sum()) / len(official) <= 0.005
    assert (robust == official).float().mean() >= 0.98
