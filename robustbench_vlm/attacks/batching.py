"""The loop that runs step-based attacks in full batches.

When a sample is finished, the next waiting sample takes its row of the batch. Rows start at different times, so each
row has its own counters.
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
"""New samples enter the batch when at least 1/8 of its places are free. Each refill copies all other samples of the
batch, so frequent refills are slow.
"""


@dataclasses.dataclass
class Rows:
    """The samples that are currently attacked, with their results so far. Each sample has one row."""

    index: Tensor
    """The position of each sample in the `Batch` of the stage, int64 (B,)."""
    images: Tensor
    """Clean images, float32 (B, 3, H, W) in [0, 1]."""
    labels: Tensor
    """True classes, int64 (B,)."""
    keys: Tensor
    """The seed of the random numbers of each sample, int64 (B,)."""
    adversarial: Tensor
    """The strongest image so far, float32 (B, 3, H, W) in [0, 1]. At the start, it is the clean image."""
    finished: Tensor
    """True if the attack on the sample is finished, bool (B,). The attack method sets this field."""
    forward: Tensor
    """Forward passes of each sample so far, int64 (B,)."""
    backward: Tensor
    """Backward passes of each sample so far, int64 (B,)."""


class State(Protocol):
    """The state of an attack method: a dataclass.

    Each field is a tensor (B, ...), a dataclass of such tensors, or a constant. A tensor has one item for each row.
    """

    rows: Rows


S = TypeVar("S", bound=State)
T = TypeVar("T")


class Method(Protocol[S]):
    """A step-based attack."""

    def start(self, model: CountedClassifier, rows: Rows) -> S:
        """Return the state of rows that enter the batch."""

    def step(self, model: CountedClassifier, state: S) -> S:
        """Take one step with every row and return the new state.

        Sets `finished` to True for the rows with a finished attack.
        """


def run_in_batches(method: Method[S], classifier: Classifier, batch: Batch, *, batch_size: int) -> Outcome:
    """Run a method on every sample of a batch, with at most `batch_size` samples in memory at once.

    Returns the outcome in the order of the batch. The result of a sample does not depend on the other samples.
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
    """Return some rows of a state. A mask, bool (B,), or an index, int64 (N,), selects the rows."""
    taken: T = _map(lambda values: values[0][selection], state)
    return taken


def join(first: T, second: T) -> T:
    """Return a state with the rows of `first` followed by the rows of `second`."""
    joined: T = _map(torch.cat, first, second)
    return joined


def put(state: T, index: Tensor, rows: T) -> T:
    """Return a copy of a state. In the copy, `rows` replace the rows at the positions `index`, int64 (N,)."""
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
