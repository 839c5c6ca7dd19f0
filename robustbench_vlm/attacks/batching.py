"""The driver of step-based attacks, which keeps batches full: a queue of samples, a batch size, one step function.

A sample leaves as soon as it is finished and the next one takes its place, so each row carries its own counters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.core.classifier_interface import Classifier

_REFILL = 8
"""A refill waits until one place in this many is free, because it copies the state of all remaining rows."""


@dataclasses.dataclass
class Rows:
    """The samples that are in the batch at the moment, one row each, and their results so far."""

    index: Tensor
    """(B,), int64: the sample's place in the batch."""
    images: Tensor
    labels: Tensor
    keys: Tensor
    adversarial: Tensor
    """(B, 3, H, W): the strongest image so far; at first the clean one."""
    finished: Tensor
    """(B,), bool: set by a method when the sample is done."""
    forward: Tensor
    backward: Tensor


class State(Protocol):
    """The state of a method: a dataclass of tensors whose first axis is the row, of such dataclasses, and constants."""

    rows: Rows


S = TypeVar("S", bound=State)
T = TypeVar("T")


class Method(Protocol[S]):
    """A step-based attack: the start of new rows, and one step of all rows."""

    def start(self, model: CountedClassifier, rows: Rows) -> S:
        """Return the state of new rows."""

    def step(self, model: CountedClassifier, state: S) -> S:
        """Pass every row once or more, set `finished` for rows that are done, and return the state after the step."""


def run_in_batches(method: Method[S], classifier: Classifier, batch: Batch, *, batch_size: int) -> Outcome:
    """Run a method on every sample of a batch, at most `batch_size` of them in memory at once.

    Returns the outcome in the batch's order. No result depends on the samples that share a batch.
    """
    assert batch_size >= 1
    outcome = Outcome(batch.images.clone(), torch.zeros_like(batch.labels), torch.zeros_like(batch.labels), {})
    waiting = torch.arange(len(batch.labels), device=batch.labels.device)
    state: S | None = None
    model, asked_for = CountedClassifier(classifier), waiting
    while True:
        free = batch_size - (0 if state is None else len(state.rows.index))
        if len(waiting) and free >= min(len(waiting), max(1, batch_size // _REFILL)):
            fresh = _start(method, classifier, batch, waiting[:free])
            waiting = waiting[free:]
            state = fresh if state is None else join(state, fresh)
        if state is None:
            return outcome
        if asked_for is not state.rows.index:
            asked_for = state.rows.index
            model = CountedClassifier(classifier.select(asked_for))
        state = _release(_step(method, model, state, outcome), outcome)


def take(state: T, selection: Tensor) -> T:
    """Return the rows of a state that a mask or an index selects."""
    taken: T = _map(lambda values: values[0][selection], state)
    return taken


def join(first: T, second: T) -> T:
    """Return one state with the rows of two."""
    joined: T = _map(torch.cat, first, second)
    return joined


def put(state: T, index: Tensor, rows: T) -> T:
    """Return a state whose rows at `index` (int64) are replaced."""
    changed: T = _map(lambda values: values[0].index_copy(0, index, values[1]), state, rows)
    return changed


def _map(combine: Callable[[list[Tensor]], Tensor], *states: Any) -> Any:
    first = states[0]
    if isinstance(first, Tensor):
        return combine(list(states))
    if not dataclasses.is_dataclass(first) or isinstance(first, type):
        return first
    names = [field.name for field in dataclasses.fields(first)]
    merged = {name: _map(combine, *(getattr(state, name) for state in states)) for name in names}
    return type(first)(**merged)


def _start(method: Method[S], classifier: Classifier, batch: Batch, index: Tensor) -> S:
    images = batch.images[index].contiguous()
    rows = Rows(
        index=index,
        images=images,
        labels=batch.labels[index],
        keys=batch.keys[index],
        adversarial=images.clone(),
        finished=torch.zeros_like(index, dtype=torch.bool),
        forward=torch.zeros_like(index),
        backward=torch.zeros_like(index),
    )
    model = CountedClassifier(classifier.select(index))
    state = method.start(model, rows)
    state.rows.forward += model.forward
    state.rows.backward += model.backward
    return state


def _step(method: Method[S], model: CountedClassifier, state: S, outcome: Outcome) -> S:
    forward, backward, index = model.forward, model.backward, state.rows.index
    state = method.step(model, state)
    state.rows.forward += model.forward - forward
    state.rows.backward += model.backward - backward
    for code, noted in model.warnings.items():
        outcome.warn(code, index[noted])
    return state


def _release(state: S, outcome: Outcome) -> S | None:
    finished = state.rows.finished
    if not bool(finished.any()):
        return state
    done = take(state.rows, finished)
    outcome.adversarial[done.index] = done.adversarial
    outcome.forward[done.index], outcome.backward[done.index] = done.forward, done.backward
    return None if bool(finished.all()) else take(state, ~finished)
