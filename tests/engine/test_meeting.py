"""Sharing an encoder: the same answers as alone, in step, whatever the threads do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_vlm.engine.meeting import meet


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        features: Tensor = self.layer(images)
        return features


def _walk(images: Tensor, steps: int, queries: int):  # type: ignore[no-untyped-def]
    """Ascend, then only look: what an attack does with its encoder."""

    def task(encoder: nn.Module) -> Tensor:
        current = images
        for _ in range(steps):
            leaf = current.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(encoder(leaf).square().sum(), leaf)
            current = current + 0.1 * gradient.sign()
        with torch.no_grad():
            for _ in range(queries):
                current = current + 0.01 * encoder(current).sum()
        return current

    return task


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_each_task_gets_what_it_would_get_alone(shapes: list[tuple[int, int, int]]) -> None:
    encoder = Counted()
    generator = torch.Generator().manual_seed(1)
    tasks = [
        _walk(torch.rand(size, 3, 2, 2, dtype=torch.float64, generator=generator), steps, queries)
        for size, steps, queries in shapes
    ]
    for alone, together in zip([task(encoder) for task in tasks], meet(encoder, tasks), strict=True):
        assert torch.allclose(alone, together, atol=1e-9)


def test_passes_are_shared() -> None:
    encoder = Counted()
    meet(encoder, [_walk(torch.rand(3, 3, 2, 2, dtype=torch.float64), 4, 2) for _ in range(5)])
    assert encoder.sizes == [15] * 6


def test_a_task_that_fails_is_raised_and_stops_no_other() -> None:
    ended: list[Tensor] = []

    def fail(encoder: nn.Module) -> None:
        raise ValueError("the third of its kind")

    def go_on(encoder: nn.Module) -> None:
        ended.append(_walk(torch.rand(2, 3, 2, 2, dtype=torch.float64), 3, 3)(encoder))

    with pytest.raises(ValueError, match="third of its kind"):
        meet(Counted(), [fail, go_on, go_on])
    assert len(ended) == 2


def test_an_encoder_that_fails_is_heard_by_all() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        meet(Broken(), [_walk(torch.rand(1, 3, 2, 2), 1, 0)] * 3)
