"""The loop that runs step-based attacks in full batches.

When a run is finished, the next waiting run takes its row of the batch. Rows start at different times, so each row has
its own counters. An attack may run several times on a sample. `schedule.py` has the order of the runs.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome
from robustbench_vlm.attacks.batch_order import Schedule
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.core.classifier_interface import Classifier


@dataclasses.dataclass
class Rows:
    """The runs that are currently in the batch, with their results so far. Each run has one row."""

    index: Tensor
    """The position of each run's sample in the `Batch` of the stage, int64 (B,)."""
    run: Tensor
    """The index of the run among the runs of its sample, int64 (B,)."""
    images: Tensor
    """Clean images, float32 (B, 3, H, W) in [0, 1]."""
    labels: Tensor
    """True classes, int64 (B,)."""
    keys: Tensor
    """The seed of the random numbers of each sample, int64 (B,)."""
    adversarial: Tensor
    """The strongest image so far, float32 (B, 3, H, W) in [0, 1]. At the start, it is the clean image."""
    score: Tensor
    """The strength of `adversarial`, float32 (B,). If no run of a sample succeeds, the image with the highest score
    counts, and of equal scores that of the first run. Methods with one run per sample do not need this field."""
    succeeded: Tensor
    """True if the run ends the attack on its sample, bool (B,). Later runs of the sample do not count."""
    finished: Tensor
    """True if the run is finished, bool (B,). The attack method sets this field."""
    forward: Tensor
    """Forward passes of each run so far, int64 (B,)."""
    backward: Tensor
    """Backward passes of each run so far, int64 (B,)."""
    gradients: Tensor
    """Gradients of each run so far, int64 (B,)."""
    zero_gradients: Tensor
    """The number of these gradients that were exactly zero, int64 (B,)."""

    def count(self, after: CountedClassifier, before: CountedClassifier) -> None:
        """Add the passes and gradients of all rows. `before` is a copy of `after` from before the calls."""
        self.forward += after.forward - before.forward
        self.backward += after.backward - before.backward
        self.gradients += after.gradients - before.gradients
        self.zero_gradients += after.zero_gradients - before.zero_gradients


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

        Sets `finished` to True for the rows with a finished run.
        """


def run_in_batches(
    method: Method[S],
    classifier: Classifier,
    batch: Batch,
    *,
    batch_size: int,
    runs: Tensor | None = None,
    head_start: int = 1,
) -> Outcome:
    """Run a method on every sample of a batch, with at most `batch_size` images in memory at once.

    `runs`, int64 (N,), is the number of runs of each sample. If it is None, each sample has one run. `head_start` is
    the number of steps after which the next run of a sample may start in a free place of the batch (`Schedule`).

    Returns the outcome in the order of the batch. The result of a sample does not depend on the other samples, and is
    that of runs one after another, each of them only if the runs before it failed.
    """
    assert batch_size >= 1
    counts = [1] * len(batch.labels) if runs is None else runs.tolist()
    schedule, results = Schedule(counts, head_start, batch_size), Results.of(batch, max(counts, default=0))
    state: S | None = None
    model, asked_for = CountedClassifier(classifier), batch.labels
    while True:
        entering = schedule.next(0 if state is None else len(state.rows.index))
        if entering:
            index, run = torch.tensor(entering, device=batch.labels.device).T
            fresh = _start(method, classifier, batch, index.contiguous(), run.contiguous())
            state = fresh if state is None else join(state, fresh)
        if state is None:
            return results.outcome(batch)
        if asked_for is not state.rows.index:
            asked_for = state.rows.index
            model = CountedClassifier(classifier.select(asked_for))
        state = _step(method, model, state, results)
        if bool(state.rows.finished.any()):
            results.add(take(state.rows, state.rows.finished))
            state = _replace(method, classifier, batch, state, results.success, schedule)


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


def _start(method: Method[S], classifier: Classifier, batch: Batch, index: Tensor, run: Tensor) -> S:
    images = batch.images[index].contiguous()
    rows = Rows(
        index=index,
        run=run,
        images=images,
        labels=batch.labels[index],
        keys=batch.keys[index],
        adversarial=images.clone(),
        score=torch.full_like(images[:, 0, 0, 0], -float("inf")),
        succeeded=torch.zeros_like(index, dtype=torch.bool),
        finished=torch.zeros_like(index, dtype=torch.bool),
        forward=torch.zeros_like(index),
        backward=torch.zeros_like(index),
        gradients=torch.zeros_like(index),
        zero_gradients=torch.zeros_like(index),
    )
    model = CountedClassifier(classifier.select(index))
    before, state = copy.copy(model), method.start(model, rows)
    state.rows.count(model, before)
    return state


def _step(method: Method[S], model: CountedClassifier, state: S, results: "Results") -> S:
    before, index, run = copy.copy(model), state.rows.index, state.rows.run
    state = method.step(model, state)
    state.rows.count(model, before)
    for code, noted in model.warnings.items():
        results.warn(code, index[noted], run[noted])
    return state


def _replace(
    method: Method[S], classifier: Classifier, batch: Batch, state: S, success: Tensor, schedule: Schedule
) -> S | None:
    """Put the next run of a sample in the place of its failed run, and remove the other finished runs.

    Runs after the first successful run of a sample, `success` (N,), are also removed.
    """
    rows, place = state.rows, state.rows.finished.nonzero().squeeze(1)
    ended = (rows.index[place].tolist(), rows.run[place].tolist(), rows.succeeded[place].tolist())
    follows = schedule.finish(zip(*ended, strict=True))
    kept = ~rows.finished & (rows.run < success[rows.index])
    if any(follows):
        place = place[torch.tensor(follows, device=place.device)]
        state = put(state, place, _start(method, classifier, batch, rows.index[place], rows.run[place] + 1))
        kept[place] = True
    if bool(kept.all()):
        return state
    return take(state, kept) if bool(kept.any()) else None


@dataclasses.dataclass
class Results:
    """The results of the finished runs of N samples with at most R runs each."""

    adversarial: Tensor
    """The strongest image of each sample, float32 (N, 3, H, W) in [0, 1]."""
    score: Tensor
    """The score of this image, float32 (N,)."""
    best_run: Tensor
    """The run that found this image, int64 (N,). It is R if no run is finished."""
    success: Tensor
    """The first successful run of each sample, int64 (N,). It is R if no run has succeeded."""
    forward: Tensor
    """Forward passes of each run, int64 (N, R)."""
    backward: Tensor
    """Backward passes of each run, int64 (N, R)."""
    gradients: Tensor
    """Gradients of each run, int64 (N, R)."""
    zero_gradients: Tensor
    """The number of these gradients that were exactly zero, int64 (N, R)."""
    warnings: dict[str, Tensor]
    """For each code, the runs with this warning, bool (N, R)."""

    @classmethod
    def of(cls, batch: Batch, runs: int) -> "Results":
        """Return the results before the first run. `runs` is R, the largest number of runs of a sample."""
        nothing, none = torch.full_like(batch.images[:, 0, 0, 0], -float("inf")), torch.full_like(batch.labels, runs)
        zeros = batch.labels.new_zeros(len(batch.labels), runs)
        first = (batch.images.clone(), nothing, none, none.clone())
        return cls(*first, zeros, zeros.clone(), zeros.clone(), zeros.clone(), {})

    def add(self, done: Rows) -> None:
        """Add finished runs. They may be in any order."""
        # Two runs of a sample may end in one step. Each round has at most one run of a sample.
        for run in sorted(set(done.run.tolist())):
            rows = take(done, done.run == run)
            index = rows.index
            self.forward[index, run], self.backward[index, run] = rows.forward, rows.backward
            self.gradients[index, run], self.zero_gradients[index, run] = rows.gradients, rows.zero_gradients
            best_run, best_score = self.best_run[index], self.score[index]
            earlier = (run < best_run) & ((rows.score == best_score) | (best_run == self._none))
            stronger = earlier | (rows.score > best_score)
            counts = torch.where(rows.succeeded, run < self.success[index], stronger & self._is_open(index))
            found, image = index[counts], rows.adversarial[counts]
            self.adversarial[found], self.score[found], self.best_run[found] = image, rows.score[counts], run
            won = index[rows.succeeded]
            self.success[won] = self.success[won].clamp_max(run)

    def warn(self, code: str, index: Tensor, run: Tensor) -> None:
        """Add a warning to the runs `run`, int64 (M,), of the samples at the positions `index`, int64 (M,)."""
        self.warnings.setdefault(code, torch.zeros_like(self.forward, dtype=torch.bool))[index, run] = True

    def outcome(self, batch: Batch) -> Outcome:
        """Return the outcome. A run after the first successful run of its sample does not count."""
        counted = torch.arange(self._none, device=self.success.device) <= self.success[:, None]
        forward, backward, gradients, zero = (
            counts.masked_fill(~counted, 0).sum(dim=1)
            for counts in (self.forward, self.backward, self.gradients, self.zero_gradients)
        )
        outcome = Outcome(self.adversarial, forward, backward, zero_gradients=zero / gradients)
        for code, runs in self.warnings.items():
            if bool((runs & counted).any()):
                outcome.warn(code, (runs & counted).any(dim=1).nonzero().squeeze(1))
        return outcome

    @property
    def _none(self) -> int:
        return self.forward.shape[1]

    def _is_open(self, index: Tensor) -> Tensor:
        return self.success[index] == self._none
