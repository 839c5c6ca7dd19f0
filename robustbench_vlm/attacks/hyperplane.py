"""The shortest step onto a hyperplane within the box [0, 1] (the projection of FAB, arXiv:1907.02044, section 2.2).

The step moves every pixel at its own rate until it meets the box. How far the hyperplane is met is a concave, piecewise
linear function of the length, so Newton's method reaches the root from below in a few exact pieces: no sorting.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_PIECES = 100


@dataclass
class Hyperplanes:
    """One hyperplane per row: where `gap + normal * (x - point)` is zero; `weight` is |normal|, (B, D)."""

    normal: Tensor
    weight: Tensor
    rate: Tensor | None
    """How fast a pixel moves: |normal| for L2, equally fast (None) for Linf."""

    @classmethod
    def of(cls, normal: Tensor, norm: str) -> "Hyperplanes":
        """Return the hyperplanes with these normals, (B, D), measured in "Linf" or "L2"."""
        weight = normal.abs()
        return cls(normal, weight, None if norm == "Linf" else weight)

    def shortest_step(self, points: Tensor, gap: Tensor) -> Tensor:
        """Return the shortest steps (B, D) from points in [0, 1] to the hyperplanes within the box.

        `gap` (B,) is the signed distance times |normal|. Where the box does not reach the hyperplane the step goes to
        the box's nearest corner.
        """
        sign = torch.where(gap[:, None] >= 0, -self.normal, self.normal).sign_()
        room = torch.where(sign > 0, 1 - points, points)
        need = gap.abs()
        length = torch.zeros_like(need)
        slope = self._slope(None)
        reached = length
        for _ in range(_PIECES):
            open_rows = (slope > 0) & (reached < need * (1 - 64 * torch.finfo(need.dtype).eps))
            if not bool(open_rows.any()):
                break
            length = torch.where(open_rows, length + (need - reached) / slope, length)
            step = self._step(length, room)
            reached = (step * self.weight).sum(dim=1)
            slope = self._slope(step < room)
        return self._step(length, room).mul_(sign)

    def _step(self, length: Tensor, room: Tensor) -> Tensor:
        moved = length[:, None] if self.rate is None else length[:, None] * self.rate
        return torch.minimum(room, moved)

    def _slope(self, moving: Tensor | None) -> Tensor:
        speed = self.weight if self.rate is None else self.weight * self.rate
        return (speed if moving is None else speed * moving).sum(dim=1)
