"""Verdicts of a sample do not depend on the other samples of its batch or on the batch size."""

from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import SHORT, halving_threat, network, samples, with_parameters
from torch import Tensor

from robustbench_vlm.attacks import batch_order, load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.attacks.batch_order import Schedule
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.core.classifier_interface import as_classifier

NAMES = ("pgd-10", "apgd-ce", "apgd-t", "fab-t", "square", "autoattack")
COUNT = 12


def verdict(name: str, batch: Batch, model: torch.nn.Module, batch_size: int) -> Verdicts:
    return attack_samples(model, batch, with_parameters(load_attack(name), SHORT), batch_size=batch_size)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(NAMES),
    norm=st.sampled_from(["Linf", "L2"]),
    classes=st.sampled_from([2, 3, 7, 12]),
    seed=st.integers(0, 5),
    order=st.permutations(range(COUNT)),
)
def test_batch_size_and_order_change_no_verdict(
    name: str, norm: str, classes: int, seed: int, order: list[int]
) -> None:
    model = network("conv", classes, seed).double()
    batch = samples(model, classes, halving_threat(model, classes, norm), COUNT)
    whole = verdict(name, batch, model, 64)
    for batch_size in (1, 7):
        other = verdict(name, batch, model, batch_size)
        assert other.broken_by == whole.broken_by
        assert torch.equal(other.forward, whole.forward)
        assert torch.allclose(other.adversarial, whole.adversarial, atol=1e-6)
    shuffled = batch.at(torch.tensor(order))
    assert verdict(name, shuffled, model, 7).broken_by == tuple(whole.broken_by[n] for n in order)


@dataclass
class CountdownState:
    rows: Rows
    left: Tensor


class Countdown:
    """A method that finishes each sample after as many steps as its label, and records the size of each batch."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def start(self, model: CountedClassifier, rows: Rows) -> CountdownState:
        return CountdownState(rows, rows.labels.clone())

    def step(self, model: CountedClassifier, state: CountdownState) -> CountdownState:
        self.held.append(len(state.left))
        model.logits(state.rows.images)
        state.left = state.left - 1
        state.rows.finished = state.left == 0
        state.rows.adversarial = state.rows.images + state.rows.labels.view(-1, 1, 1, 1)
        return state


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_a_finished_sample_is_replaced_by_a_waiting_one(batch_size: int) -> None:
    model = network("linear", 5)
    batch = samples(model, 5, halving_threat(model, 5, "Linf"), 40)
    batch = replace(batch, labels=torch.arange(40) % 9 + 1)
    method = Countdown()
    outcome = run_in_batches(method, as_classifier(model), batch, batch_size=batch_size)
    assert torch.equal(outcome.forward, batch.labels) and not outcome.backward.any()
    assert torch.equal(outcome.adversarial, batch.images + batch.labels.view(-1, 1, 1, 1))
    assert max(method.held) == min(batch_size, 40)
    assert sum(method.held) == int(batch.labels.sum())
    # All batches are full until the last samples, of which each takes up to 9 steps.
    assert len(method.held) <= sum(method.held) / min(batch_size, 40) + 9


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["apgd-t", "fab-t", "malt"])
def test_runs_that_start_early_change_no_bit(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = network("conv", 12), []
    batch = samples(model, 12, halving_threat(model, 12, norm), 64)

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return model(images)

    (stage,) = with_parameters(load_attack(name), {name: {"steps": 12, "targets": 4}}).stages
    overlapping = stage.run(as_classifier(watched), batch, batch_size=128)
    calls, images, largest = len(sizes), sum(sizes), max(sizes)
    monkeypatch.setattr(batch_order, "_COMPANY", 1000)
    sizes.clear()
    one_after_another = stage.run(as_classifier(watched), batch, batch_size=128)
    assert torch.equal(overlapping.adversarial, one_after_another.adversarial)
    assert torch.equal(overlapping.forward, one_after_another.forward)
    assert torch.equal(overlapping.backward, one_after_another.backward)
    # Runs of a sample overlap, so a batch has more images than samples. Some runs are for nothing, but only few.
    assert max(sizes) == 64 < largest <= 128
    assert calls < 0.8 * len(sizes) and sum(sizes) <= images <= 1.3 * sum(sizes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=90),
    batch_size=st.integers(1, 100),
    head_start=st.integers(0, 6),
    success=st.randoms(use_true_random=False),
)
def test_the_schedule_starts_every_run_before_the_first_success_once(
    runs: list[int], batch_size: int, head_start: int, success: Random
) -> None:
    succeeds = [success.choice([*range(5), 99, 99, 99]) for _ in runs]
    waiting, active, started, won = Schedule(runs, head_start, batch_size), {}, [], set()
    for _ in range(5000):
        entering = waiting.next(len(active))
        active |= dict.fromkeys(entering, 6)
        started += entering
        assert len(active) <= batch_size
        if not active:
            break
        active = {pair: left - 1 for pair, left in active.items() if pair[0] not in won}
        ended = [(n, run, run == succeeds[n]) for (n, run), left in active.items() if not left]
        won |= {n for n, _, succeeded in ended if succeeded}
        active = {pair: left for pair, left in active.items() if left}
        following = [pair[:2] for pair, follows in zip(ended, waiting.finish(ended), strict=True) if follows]
        active |= {(n, run + 1): 6 for n, run in following}
        started += [(n, run + 1) for n, run in following]
    assert not active and len(started) == len(set(started))
    needed = {(n, run) for n, count in enumerate(runs) for run in range(min(count, succeeds[n] + 1))}
    assert needed <= set(started)
