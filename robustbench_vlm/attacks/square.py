"""Square Attack: random search with square-shaped changes, no gradients (arXiv:1912.00049, algorithms 1 to 3).

Follows pyautoattack 0.2.0 without its rescaled schedule, as its standard version does, except: positions and colours
are drawn for each sample; squares reach the last row and column; a sample leaves when it is misclassified, not at a
tie.

If the batch has room, the next few queries of a row are made in one pass, each as if the queries before it fail. The
queries after the first successful one are discarded and made again, so the search is the same, query by query.
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
"""After these queries the share of the image that a square covers is halved."""
_LEAST_AHEAD, _MOST_AHEAD = 3, 8
"""Limits of the queries of a row in one pass, if more than one. Two at once cost as much as they save."""


@dataclass
class SquareState:
    """Each row's best image so far and its loss."""

    rows: Rows
    query: Tensor
    best: Tensor
    loss: Tensor


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square Attack with `queries` changes after the first image; the first squares cover `p_init` of it."""

    threat: Threat
    queries: int = 5000
    p_init: float = 0.8
    batch_size: int = 1
    """Images that one pass may hold."""

    def start(self, model: CountedClassifier, rows: Rows) -> SquareState:
        """Prepare the rows; the first step makes the first query."""
        unseen = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        return SquareState(rows, torch.zeros_like(rows.labels), rows.images.clone(), unseen)

    def step(self, model: CountedClassifier, state: SquareState) -> SquareState:
        """Make one query or more for each row and keep the first change that helped."""
        rows, count, spent = state.rows, len(state.query), (model.forward, model.backward)
        ahead = self._ahead(state)
        place = torch.arange(count * ahead, device=state.query.device)
        row, query = place % count, state.query.repeat(ahead) + place // count
        candidate = self._candidate(state, row, query.clamp_max(self.queries))
        which, labels = row if ahead > 1 else None, rows.labels[row]
        logits = model.logits(candidate, which)
        loss, broken = -margin(logits, labels, labels), model.misclassified(candidate, logits, labels, which)
        better = ((broken | (loss < state.loss[row])) & (query <= self.queries)).view(ahead, count)
        # The earliest query that helped; for a row without one the first, which is then not taken.
        first = (better * torch.arange(ahead, 0, -1, device=place.device)[:, None]).argmax(dim=0)
        helped = better.any(dim=0)
        chosen = first * count + place[:count]
        index = helped.nonzero().squeeze(1)
        state.best[index] = candidate[chosen[index]]
        state.loss = torch.where(helped, loss[chosen], state.loss)
        used = torch.where(helped, first + 1, (self.queries + 1 - state.query).clamp_max(ahead))
        state.query = state.query + used
        # The driver counts one query a step.
        rows.forward += (used - 1) * (model.forward - spent[0])
        rows.backward += (used - 1) * (model.backward - spent[1])
        rows.finished = (helped & broken[chosen]) | (state.query > self.queries)
        rows.adversarial = state.best
        return state

    def _ahead(self, state: SquareState) -> int:
        """Return the number of queries of each row in one pass; 1 for the first query, which always helps."""
        room = min(_MOST_AHEAD, self.batch_size // len(state.query))
        return room if room >= _LEAST_AHEAD and not bool((state.query == 0).any()) else 1

    def share_at(self, query: Tensor) -> Tensor:
        """Return the share of the image that the square of each query (B,) covers; the first change is query 1."""
        halvings = torch.bucketize(query - 1, torch.tensor(_HALVINGS, device=query.device))
        return self.p_init * 0.5**halvings

    def _candidate(self, state: SquareState, row: Tensor, query: Tensor) -> Tensor:
        proposals, eps = PROPOSALS[self.threat.norm], float(self.threat.eps)
        samples, best, first = CleanImages(state.rows.images, state.rows.keys), state.best, query == 0
        if bool(first.all()):
            return proposals.first(samples, eps)
        if len(row) > len(best):
            samples, best = CleanImages(samples.images[row], samples.keys[row]), best[row]
        candidate = proposals.changed(samples, eps, best, query, _sides(self, *best.shape[2:], best.device)[query])
        if bool(first.any()):
            candidate = torch.where(as_factor(first), proposals.first(samples, eps), candidate)
        return candidate


@lru_cache(maxsize=64)
def _sides(method: Square, height: int, width: int, device: torch.device) -> Tensor:
    """Return the side of the square of every query, int64 (queries + 1,)."""
    query = torch.arange(method.queries + 1, device=device)
    return PROPOSALS[method.threat.norm].sides(method.share_at(query), height, width)


def square_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of Square Attack for a sample that stays robust: all queries and the first image."""
    return int(parameters["queries"]) + 1, 0


def square(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Run Square Attack as a stage; the parameters are those of `Square`."""
    return run_in_batches(
        Square(threat=batch.threat, batch_size=batch_size, **parameters), classifier, batch, batch_size=batch_size
    )


def square_stage(name: str, **parameters: Any) -> Stage:
    """Return a stage that runs Square Attack with these parameters."""
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
