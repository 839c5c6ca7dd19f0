"""The shortest step onto a hyperplane within the box [0, 1] (the projection of FAB, arXiv:1907.02044, section 2.2).

The step moves every pixel at its own speed until it meets the box. How far the hyperplane is met is a concave,
piecewise linear function of the step's length, so the secant through the last two lengths climbs to the root and is
exact on the last piece: a few passes over the pixels, and no sorting.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CLIMBS = 100


@dataclass(frozen=True)
class Hyperplanes:
    """One hyperplane per row, by its normal (B, D); its parts are worked out once for all steps to it."""

    sign: Tensor
    weight: Tensor
    speed: Tensor | None
    """How fast a pixel moves along the shortest step: as |normal| for L2, all of them equally (None) for Linf."""
    growth: Tensor

    @classmethod
    def of(cls, normal: Tensor, norm: str) -> "Hyperplanes":
        """Return the hyperplanes with these normals (B, D), to be reached by steps short in "Linf" or "L2"."""
        weight = normal.abs()
        if norm == "Linf":
            return cls(normal.sign(), weight, None, weight.sum(dim=1))
        # Relative speeds: the squares of a tiny normal would be zero in float32.
        speed = weight / weight.amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return cls(normal.sign(), weight, speed, (weight * speed).sum(dim=1))

    def shortest_step(self, points: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shortest step within the box to where gap + normal * step is zero, as two factors.

        The step is the product of the normal's sign, the sizes (B, D), all >= 0, and the side (B,), -1 or 1. Points lie
        in [0, 1]; `gap` is (B,). A hyperplane that the box does not meet is approached up to the box's corner.
        """
        side = torch.where(gap >= 0, -1.0, 1.0).to(points.dtype)
        room = torch.addcmul(points.new_tensor(0.5), self.sign * side[:, None], 0.5 - points)
        return self._climb(room, gap.abs()), side

    def _climb(self, room: Tensor, need: Tensor) -> Tensor:
        enough = need * (1 - torch.finfo(need.dtype).eps ** 0.5)
        before, reached_before = torch.zeros_like(need), torch.zeros_like(need)
        length = torch.where(self.growth > 0, need / self.growth, 0)
        for _ in range(_CLIMBS):
            sizes = torch.minimum(room, length[:, None] if self.speed is None else length[:, None] * self.speed)
            reached = (sizes * self.weight).sum(dim=1)
            # A row stops where it is there or where all its pixels have met the box, whatever the other rows do.
            climbs = (reached < enough) & (reached > reached_before)
            if not bool(climbs.any()):
                break
            longer = length + (need - reached) * (length - before) / (reached - reached_before)
            before, reached_before = torch.where(climbs, length, before), torch.where(climbs, reached, reached_before)
            length = torch.where(climbs, longer, length)
        return sizes
