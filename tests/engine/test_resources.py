"""Test resources: if memory runs out, the batch size is halved and the records do not change."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine import resources, shard
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.model_cache import classifier_of
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources, choose_batch_size, is_out_of_memory, with_fitting_batch_size
from robustbench_vlm.engine.run import run_plan


@pytest.fixture
def plan_of(taught_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Plan]:
    monkeypatch.setattr(shard, "_fitting", {})

    def make(batch_size: int) -> Plan:
        return resolve(
            Request(
                models=(str(taught_card),),
                attacks=("pgd-10",),
                datasets=("colours", "textures"),
                eps=("1/255", "2/255"),
                samples=6,
                out=tmp_path / str(batch_size),
                resources=Resources(device="cpu", workers=1, batch_size=batch_size),
            )
        )

    return make


class Full:
    """Forward hook that raises an out-of-memory error for more than `most` images, and counts the refused calls."""

    def __init__(self, most: int) -> None:
        self.most, self.refused = most, 0

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def run_within(plan: Plan, most: int) -> int:
    """Run a plan on a network that accepts at most `most` images per call; return the number of refused calls."""
    cell = plan.cells[0]
    full = Full(most)
    encoder = classifier_of(cell.model, cell.track, cell.dataset.prompts, "cpu").encoder
    with encoder.register_forward_pre_hook(full):
        run_plan(plan)
    return full.refused


def records(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


def test_a_halved_batch_size_gives_the_records_of_a_small_batch_size(plan_of: Callable[[int], Plan]) -> None:
    # The output checks pass the six images of a shard twice in one batch, so batch sizes of 16 and 8 do not fit.
    plans = [plan_of(4), plan_of(16)]
    assert [run_within(plan, 8) for plan in plans] == [0, 2]
    few, many = (records(plan.request.out) for plan in plans)
    assert few == many and len(few) == 4
    assert list(shard._fitting.values()) == [4]


def test_a_sample_that_does_not_fit_into_memory_raises_user_error(plan_of: Callable[[int], Plan]) -> None:
    with pytest.raises(UserError, match=r"too small for a batch of one sample: .* out of memory\. Tried .*--workers"):
        run_within(plan_of(2), 0)


def test_memory_is_freed_before_the_next_attempt() -> None:
    held: list[weakref.ref[Tensor]] = []

    def work(batch_size: int) -> list[bool]:
        still = [each() is not None for each in held]
        tensor = torch.zeros(batch_size)
        held.append(weakref.ref(tensor))
        if batch_size > 2:
            raise MemoryError
        return still

    assert with_fitting_batch_size(work, 8) == ([False, False], 2)


def test_errors_other_than_out_of_memory_are_not_caught() -> None:
    def work(batch_size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        with_fitting_batch_size(work, 8)


class Attention(nn.Module):
    """A layer whose backward pass keeps a view of the weight for every row, as attention layers of torch do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(48, 48), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1).view(len(images), -1, 48)
        return torch.bmm(rows, self.weight.expand(len(images), -1, -1)).square().sum(dim=(1, 2))


def test_the_memory_of_a_sample_counts_storages_once_and_no_weights() -> None:
    images = torch.rand(4, 3, 8, 8)
    image = images[0].numel() * 4
    # The backward pass of `square` keeps the product, which is as large as the images.
    assert resources.sample_memory(Attention(), images) == resources.STATE_COPIES * image + image


def test_a_model_without_a_gradient_is_measured_without_a_backward_pass() -> None:
    class Cut(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.detach().flatten(1)

    images = torch.rand(2, 3, 4, 4)
    assert resources.sample_memory(Cut(), images) == resources.STATE_COPIES * images[0].numel() * 4
    assert not resources.run_backward(Cut(), images)
    assert resources.run_backward(torch.nn.Flatten(), images)


def test_out_of_memory_errors_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    errors = [caught.value, MemoryError(), torch.OutOfMemoryError("full")]
    errors += [RuntimeError("MPS backend out of memory"), RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED")]
    assert all(map(is_out_of_memory, errors))
    assert not any(map(is_out_of_memory, [ValueError("out of memory"), RuntimeError("shapes")]))


@pytest.mark.parametrize(
    ("free", "batch_size"), [(80 * 2**30, 256), (10 * 2**30, 64), (2**30, 4), (2**27, 1), (2**20, 1)]
)
def test_the_batch_size_on_a_gpu_fits_its_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, batch_size: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80 * 2**30))
    assert choose_batch_size("cuda", 100 * 2**20, 1) == batch_size
    assert choose_batch_size("cpu", 100 * 2**20, 1) == resources.CPU_BATCH_SIZE


def test_workers_on_the_same_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_batch_size("cuda", 100 * 2**20, workers) for workers in (1, 2, 3, 4, 5, 8)] == [
        64,
        64,
        32,
        32,
        16,
        16,
    ]


def test_plan_and_estimate_have_the_batch_size(plan_of: Callable[[int], Plan]) -> None:
    automatic, given = plan_of(0), plan_of(5)
    assert (automatic.request.resources.batch_size, estimate_cost(automatic).batch_size) == (64, 64)
    assert replace(given.request.resources, batch_size=0) == replace(automatic.request.resources, batch_size=0)
    assert estimate_cost(given).batch_size == 5
