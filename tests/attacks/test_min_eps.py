"""Tests of the search for the smallest radius: closed form, the largest radius, and stored verdicts of AutoAttack."""

from dataclasses import replace

import pytest
import torch
from made_up import halving_threat, linear_distances, network, samples
from test_reference import BENCHMARK, DATA

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.threat import Threat, parse_eps

MIN_EPS = load_attack("min-eps")


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_distance_of_a_linear_model_is_its_closed_form(norm: str, classes: int) -> None:
    model = network("linear", classes)
    threat = halving_threat(model, classes, norm)
    batch = samples(model, classes, threat)
    found = attack_samples(model, batch, MIN_EPS, batch_size=24)
    exact, eps = linear_distances(model, batch, classes - 1), float(threat.eps)
    assert torch.equal(found.robust, exact > eps) and 0 < found.robust.sum() < 24
    broken = ~found.robust
    assert (found.distance[broken] >= exact[broken] - 1e-6).all()
    assert (found.distance[broken] <= exact[broken] * 1.01).all()


def test_a_smaller_largest_radius_only_leaves_out_the_samples_beyond_it() -> None:
    model = network("conv", 5)
    wide, narrow = (halving_threat(model, 5, "Linf", times=times) for times in (4, 1))
    batch = samples(model, 5, wide)
    far, near = (
        attack_samples(model, replace(batch, threat=threat), MIN_EPS, batch_size=24) for threat in (wide, narrow)
    )
    within = ~far.robust & (far.distance <= 0.98 * float(narrow.eps))
    assert within.sum() > 3 and not near.robust[within].any()
    assert torch.allclose(near.distance[within], far.distance[within], rtol=0.03)
    assert near.robust[far.robust].all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the test data are not on this machine")
def test_the_distances_agree_with_stored_verdicts_of_autoattack_at_two_radii() -> None:
    model, batch, at_2 = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], "2/255")
    at_8 = BENCHMARK["read_reference"](DATA / "real", DATA / BENCHMARK["WEIGHTS"], "8/255")[2]
    some = torch.arange(0, 200, 5)
    part = replace(batch, threat=Threat("Linf", parse_eps("10/255"))).at(some)
    found = attack_samples(model, part, MIN_EPS, batch_size=40)
    wrong = torch.tensor([stage == "clean" for stage in found.broken_by])
    for eps, official in ((2, at_2[some]), (8, at_8[some])):
        held = ~wrong & (found.robust | (found.distance > eps / 255))
        assert (held != official).sum() <= 1
