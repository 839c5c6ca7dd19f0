"""Square Attack: random search with square-shaped changes, no gradients (arXiv:1912.00049, algorithms 1 to 3).

Follows pyautoattack 0.2.0 without its rescaled schedule, as its standard version does, except: positions and colours
are drawn per sample; squares reach the last row and column; a sample leaves when it is misclassified, not at a tie.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.balls import as_factor
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.oracle import Oracle
from robustbench_vlm.attacks.slots import Rows, run_in_slots
from robustbench_vlm.attacks.squares import PROPOSALS
from robustbench_vlm.attacks.stage import Batch, Logits, Outcome
from robustbench_vlm.threats import Threat

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After these queries the share of the image that a square covers is halved."""


@dataclass
class SquareState:
    """Each row's best image so far and its loss."""

    rows: Rows
    query: Tensor
    best: Tensor
    loss: Tensor


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square Attack with `queries` changes after the first image; the first squares cover `share` of it."""

    threat: Threat
    queries: int = 5000
    share: float = 0.8

    def start(self, oracle: Oracle, rows: Rows) -> SquareState:
        """Prepare the rows; the first step makes the first query."""
        unseen = torch.full_like(rows.images[:, 0, 0, 0], float("inf"))
        return SquareState(rows, torch.zeros_like(rows.labels), rows.images.clone(), unseen)

    def step(self, oracle: Oracle, state: SquareState) -> SquareState:
        """Make one query for each row and keep the change where it helped."""
        rows = state.rows
        candidate = self._candidate(state)
        logits = oracle.logits(candidate)
        loss = -margin(logits, rows.labels, rows.labels)
        broken = logits.argmax(dim=1) != rows.labels
        better = broken | (loss < state.loss)
        state.loss = torch.where(better, loss, state.loss)
        index = better.nonzero().squeeze(1)
        state.best[index] = candidate[index]
        rows.finished = broken | (state.query == self.queries)
        rows.adversarial = state.best
        state.query = state.query + 1
        return state

    def share_at(self, query: Tensor) -> Tensor:
        """Return the share of the image that the square of each query (B,) covers; the first change is query 1."""
        halvings = torch.bucketize(query - 1, torch.tensor(_HALVINGS, device=query.device))
        return self.share * 0.5**halvings

    def _sides(self, images: Tensor) -> Tensor:
        return _sides(self, images.shape[2], images.shape[3], images.device)

    def _candidate(self, state: SquareState) -> Tensor:
        proposals, eps = PROPOSALS[self.threat.norm], float(self.threat.eps)
        first = state.query == 0
        if bool(first.all()):
            return proposals.first(state.rows, eps)
        side = self._sides(state.best)[state.query]
        candidate = proposals.changed(state.rows, eps, state.best, state.query, side)
        if bool(first.any()):
            candidate = torch.where(as_factor(first), proposals.first(state.rows, eps), candidate)
        return candidate


@lru_cache(maxsize=64)
def _sides(method: Square, height: int, width: int, device: torch.device) -> Tensor:
    """Return the side of the square of every query, int64 (queries + 1,)."""
    query = torch.arange(method.queries + 1, device=device)
    return PROPOSALS[method.threat.norm].sides(method.share_at(query), height, width)


def square(logits: Logits, batch: Batch, *, slots: int, **parameters: Any) -> Outcome:
    """Run Square Attack as a stage; the parameters are those of `Square`."""
    return run_in_slots(Square(threat=batch.threat, **parameters), logits, batch, slots=slots)
