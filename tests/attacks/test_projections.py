"""Comparison of `Hyperplanes` with general solvers, on hyperplanes that do and do not meet [0, 1]."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from robustbench_vlm.attacks.projections import Hyperplanes

SIZE = 6


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(5, SIZE, generator=generator, dtype=torch.float64)
    points[:, 0], points[:, 1] = 0, 1
    normal = torch.randn(5, SIZE, generator=generator, dtype=torch.float64)
    normal[0, 2] = 0
    gap = torch.randn(5, generator=generator, dtype=torch.float64)
    return points, normal, gap


def steps_to(points: torch.Tensor, normal: torch.Tensor, gap: torch.Tensor, norm: str) -> torch.Tensor:
    planes = Hyperplanes.of(normal, norm)
    sizes, side = planes.shortest_step(points, gap)
    assert (sizes >= 0).all()
    return planes.sign * sizes * side[:, None]


def shortest(points: np.ndarray, normal: np.ndarray, gap: float, norm: str) -> float | None:
    """Return the length of the shortest step by a solver of scipy; None if no step inside [0, 1] exists."""
    bounds = list(zip(-points, 1 - points, strict=True))
    if norm == "Linf":
        eye = np.eye(SIZE)
        sides = np.block([[eye, -np.ones((SIZE, 1))], [-eye, -np.ones((SIZE, 1))]])
        cost = np.r_[np.zeros(SIZE), 1]
        found = linprog(cost, sides, np.zeros(2 * SIZE), [np.r_[normal, 0]], [-gap], [*bounds, (0, None)])
        return float(found.fun) if found.success else None
    within = linprog(np.zeros(SIZE), A_eq=[normal], b_eq=[-gap], bounds=bounds)
    if not within.success:
        return None
    plane = {"type": "eq", "fun": lambda step: normal @ step + gap, "jac": lambda step: normal}
    found = minimize(
        lambda step: step @ step, within.x, jac=lambda step: 2 * step, bounds=bounds, constraints=plane, tol=1e-14
    )
    return float(np.sqrt(found.fun)) if found.success else None


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_step_to_a_hyperplane_is_the_shortest(norm: str, seed: int) -> None:
    points, normal, gap = problem(seed)
    steps = steps_to(points, normal, gap, norm)
    assert ((points + steps >= -1e-12) & (points + steps <= 1 + 1e-12)).all()
    for point, direction, distance, step in zip(points, normal, gap, steps, strict=True):
        best = shortest(point.numpy(), direction.numpy(), float(distance), norm)
        missing = float(direction @ step + distance)
        if best is None:
            corner = torch.where(direction * distance > 0, -point, 1 - point) * (direction != 0)
            assert torch.allclose(step, corner, atol=1e-6)
        else:
            assert missing == pytest.approx(0, abs=1e-7)
            assert float(step.norm(torch.inf if norm == "Linf" else 2)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_zero_normal_or_a_zero_gap_gives_a_zero_step(norm: str) -> None:
    points, normal, gap = problem(0)
    assert not steps_to(points, torch.zeros_like(normal), gap, norm).any()
    assert not steps_to(points, normal, torch.zeros_like(gap), norm).any()
