"""Square Attack: random search with square-shaped changes and without gradients (arXiv:1912.00049, algorithms 1 to 3).

The implementation follows pyautoattack 0.2.0 without its option to rescale the schedule. There are three differences:

* Positions and colours are drawn for each sample.
* Squares may cover the last row and column of the image.
* A sample is finished when it is misclassified. Two equal logits do not finish it.

If a batch has fewer samples than `batch_size`, one forward pass makes several queries for each sample. Each of these
queries is made as if the queries before it did not lower the loss. The queries after the first successful query are
discarded and made again. Therefore the search gives the same result as with one query per pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Batch, Outcome, Stage
from robustbench_vlm.attacks.batching import Rows, run_in_batches
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import as_factor
from robustbench_vlm.attacks.square_proposals import PROPOSALS, CleanImages
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.threat import Threat

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The numbers of queries after which the area of the squares is halved."""
_LEAST_AHEAD, _MOST_AHEAD = 3, 8
"""Limits of the number of queries per sample in one forward pass. A pass makes 3 to 8 queries for each sample. If the
batch size allows only 2, the pass makes 1, because 2 queries in one pass save no time.
"""


@dataclass
class SquareState:
    """The state of the random search for each sample."""

    rows: Rows
    query: Tensor
    """The number of queries so far, int64 (B,)."""
    best: Tensor
    """The image with the lowest loss so far, float32 (B, 3, H, W) in [0, 1]."""
    loss: Tensor
    """The label's logit for `best` minus the largest other logit, float32 (B,). It is infinite before the first
    query."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square Attack with one query for the initial image and `queries` queries for changed images."""

    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    """The fraction of the image that the first squares cover."""
    batch_size: int = 1
    """The largest number of images in one forward pass."""

    def start(self, model: CountedClassifier, rows: Rows) -> SquareState:
        """Return the state before the first query."""
        unseen = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        return SquareState(rows, torch.zeros_like(rows.labels), rows.images.clone(), unseen)

    def step(self, model: CountedClassifier, state: SquareState) -> SquareState:
        """Make one or more queries for each sample and keep the first change that lowers the loss."""
        ahead = self._ahead(state)
        (self._ask_once if ahead == 1 else self._ask_ahead)(model, state, ahead)
        state.rows.adversarial = state.best
        return state

    def _ask_once(self, model: CountedClassifier, state: SquareState, ahead: int) -> None:
        labels, candidate = state.rows.labels, self._candidate(state, None, state.query)
        logits = model.logits(candidate)
        loss, broken = -margin(logits, labels, labels), model.misclassified(candidate, logits, labels)
        helped = broken | (loss < state.loss)
        index = helped.nonzero().squeeze(1)
        state.best[index] = candidate[index]
        state.loss = torch.where(helped, loss, state.loss)
        state.query = state.query + 1
        state.rows.finished = broken | (state.query > self.queries)

    def _ask_ahead(self, model: CountedClassifier, state: SquareState, ahead: int) -> None:
        rows, count, spent = state.rows, len(state.query), (model.forward, model.backward)
        row, turn, rank = _layout(count, ahead, state.query.device)
        query = state.query[row] + turn
        candidate = self._candidate(state, row, query.clamp_max(self.queries))
        labels = rows.labels[row]
        logits = model.logits(candidate, row)
        loss, broken = -margin(logits, labels, labels), model.misclassified(candidate, logits, labels, row)
        better = ((broken | (loss < state.loss[row])) & (query <= self.queries)).view(ahead, count)
        # `first` is the position of the first successful query of each sample. If no query of a sample succeeded,
        # `first` is 0 and `helped` is False.
        first = (better * rank).argmax(dim=0)
        helped = better.any(dim=0)
        chosen = first * count + row[:count]
        index = helped.nonzero().squeeze(1)
        state.best[index] = candidate[chosen[index]]
        state.loss = torch.where(helped, loss[chosen], state.loss)
        used = torch.where(helped, first + 1, (self.queries + 1 - state.query).clamp_max(ahead))
        state.query = state.query + used
        # `run_in_batches` counts the passes as if each step made one query per sample. The passes of the other queries
        # are added here.
        rows.forward += (used - 1) * (model.forward - spent[0])
        rows.backward += (used - 1) * (model.backward - spent[1])
        rows.finished = (helped & broken[chosen]) | (state.query > self.queries)

    def _ahead(self, state: SquareState) -> int:
        """Return the number of queries per sample in the next forward pass.

        It is 1 if a sample in the batch has not made a query, because the first query always succeeds.
        """
        room = min(_MOST_AHEAD, self.batch_size // len(state.query))
        return room if room >= _LEAST_AHEAD and not bool((state.query == 0).any()) else 1

    def share_at(self, query: Tensor) -> Tensor:
        """Return the fraction of the image that the square of a query covers, float32 (B,).

        `query`, int64 (B,), contains the index of each query. Index 1 is the first changed image.
        """
        halvings = torch.bucketize(query - 1, torch.tensor(_HALVINGS, device=query.device))
        return self.p_init * 0.5**halvings

    def _candidate(self, state: SquareState, row: Tensor | None, query: Tensor) -> Tensor:
        """Return the candidate image of each query, float32 (N, 3, H, W).

        `row`, int64 (N,), has the index of the sample of each query. If it is None, each sample has one query. `query`,
        int64 (N,), has the index of each query.
        """
        proposals, eps, best = PROPOSALS[self.threat.norm], float(self.threat.eps), state.best
        samples = CleanImages(state.rows.images, state.rows.keys)
        side = _sides(self, *best.shape[2:], best.device)[query]
        if row is not None:
            return proposals.changed(samples, eps, best, query, side, row)
        first = query == 0
        if bool(first.all()):
            return proposals.first(samples, eps)
        candidate = proposals.changed(samples, eps, best, query, side)
        if bool(first.any()):
            candidate = torch.where(as_factor(first), proposals.first(samples, eps), candidate)
        return candidate


@lru_cache(maxsize=64)
def _layout(count: int, ahead: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return three tensors for `count` samples with `ahead` queries each.

    They are the index of the sample of each image, int64 (ahead * count,), the number of queries of this sample before
    the image, int64 (ahead * count,), and the numbers from `ahead` down to 1, int64 (ahead, 1).
    """
    place = torch.arange(count * ahead, device=device)
    return place % count, place // count, torch.arange(ahead, 0, -1, device=device)[:, None]


@lru_cache(maxsize=64)
def _sides(method: Square, height: int, width: int, device: torch.device) -> Tensor:
    """Return the side of the square in pixels for every query of the attack `method`, int64 (queries + 1,)."""
    query = torch.arange(method.queries + 1, device=device)
    return PROPOSALS[method.threat.norm].sides(method.share_at(query), height, width)


def square_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of classifier calls without and with a gradient for a sample that stays robust.

    For such a sample, Square Attack classifies the initial image and makes all its queries. It uses no gradient.
    """
    return int(parameters["queries"]) + 1, 0


def square(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with Square Attack. The parameters are the fields of `Square`."""
    return run_in_batches(
        Square(threat=batch.threat, batch_size=batch_size, **parameters), classifier, batch, batch_size=batch_size
    )


def square_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs Square Attack. The parameters are the fields of `Square`."""
    return Stage(
        name,
        "square",
        f"{__name__}:square",
        parameters,
        version=1,
        calls=square_calls,
        gradient_free=True,
        mixes_datasets=True,
    )
