"""Projections onto a threat's ball and onto hyperplanes, random starts and steepest directions (arXiv:1706.06083)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import Threat

_MAX_CLIMBS = 100


def project(threat: Threat, images: Tensor, adversarial: Tensor) -> Tensor:
    """Return the point of the ball around `images` and of the box [0, 1] that `adversarial` is moved to, (B, ...).

    Non-finite values fall back to the clean pixel.
    """
    delta = torch.where(torch.isfinite(adversarial), adversarial, images) - images
    eps = float(threat.eps)
    if threat.norm == "Linf":
        delta = delta.clamp(-eps, eps)
    else:
        norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta = delta * (eps / norm).clamp_max(1).view(-1, *[1] * (delta.dim() - 1))
    return (images + delta).clamp(0, 1)


def distance(threat: Threat, images: Tensor, adversarial: Tensor) -> Tensor:
    """Return each sample's perturbation size in the threat's norm, pixel scale, shape (B,)."""
    delta = (adversarial - images).flatten(1)
    return delta.abs().amax(dim=1) if threat.norm == "Linf" else delta.norm(dim=1)


def as_factor(values: Tensor) -> Tensor:
    """Return (B,) as (B, 1, 1, 1), to multiply images with."""
    return values.view(-1, 1, 1, 1)


@dataclass
class LinfBall:
    """The ball |x - image| <= eps in every pixel, cut with [0, 1], one per row."""

    low: Tensor
    high: Tensor

    def clip(self, points: Tensor) -> Tensor:
        """Return the nearest points of the ball, (B, 3, H, W)."""
        return torch.clamp(points, self.low, self.high)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        """Return the steepest ascent direction of unit length, (B, 3, H, W)."""
        return gradient.sign()

    @staticmethod
    def inside(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Return random points of the unit ball around zero, uniform, (B, 3, H, W)."""
        return (randomness.uniform(keys, counter, images.shape[1:]) * 2 - 1).to(images.dtype)

    @staticmethod
    def boundary(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Return random points of length 1, (B, 3, H, W): noise stretched until its largest pixel is 1."""
        noise = LinfBall.inside(keys, counter, images)
        return noise / as_factor(noise.flatten(1).abs().amax(dim=1).clamp_min(1e-12))


@dataclass
class L2Ball:
    """The ball |x - image|_2 <= eps, cut with [0, 1], one per row."""

    images: Tensor
    eps: float

    def clip(self, points: Tensor) -> Tensor:
        """Return points of the ball: scaled back to the sphere, then into the box, (B, 3, H, W)."""
        delta = points - self.images
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta *= as_factor((self.eps / length).clamp_max(1))
        return delta.add_(self.images).clamp_(0, 1)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        """Return the steepest ascent direction of unit length, (B, 3, H, W); zero where the gradient is."""
        # The largest entry first: squares of tiny or huge gradients would leave the range of float32.
        scaled = gradient / as_factor(gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny))
        return scaled / as_factor(scaled.flatten(1).norm(dim=1).clamp_min(1e-12))

    @staticmethod
    def inside(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Return random points of the unit ball around zero, their length uniform, (B, 3, H, W)."""
        length = randomness.uniform(randomness.derive(keys, "length"), counter, (1,)).to(images.dtype)
        return L2Ball.boundary(keys, counter, images) * as_factor(length)

    @staticmethod
    def boundary(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Return random points of length 1, uniform on the sphere, (B, 3, H, W)."""
        return L2Ball.direction(randomness.normal(keys, counter, images.shape[1:]).to(images.dtype))


Ball = LinfBall | L2Ball


def ball_around(threat: Threat, images: Tensor) -> Ball:
    """Return the threat's ball around each image of (B, 3, H, W)."""
    eps = float(threat.eps)
    if threat.norm == "Linf":
        return LinfBall((images - eps).clamp_min_(0), (images + eps).clamp_max_(1))
    return L2Ball(images, eps)


@dataclass(frozen=True)
class Hyperplanes:
    """One hyperplane for each row, with the shortest steps onto it in the box [0, 1] (arXiv:1907.02044, section 2.2).

    A step moves every pixel at its own speed until it meets the box. The part of the way to the hyperplane that it
    covers is a concave, piecewise linear function of the step's length, so the secant through the last two lengths
    climbs to the root and is exact on the last piece: a few passes over the pixels, and no sorting.
    """

    sign: Tensor
    weight: Tensor
    speed: Tensor | None
    """Speed of each pixel along the shortest step: in proportion to |normal| for L2, equal (None) for Linf."""
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

        The step is the product of the normal's sign, the sizes (B, D), all >= 0, and the side (B,), -1 or 1. Points are
        in [0, 1]; `gap` is (B,). A hyperplane that the box does not meet is approached up to the box's corner.
        """
        side = torch.where(gap >= 0, -1.0, 1.0).to(points.dtype)
        room = torch.addcmul(points.new_tensor(0.5), self.sign * side[:, None], 0.5 - points)
        return self._climb(room, gap.abs()), side

    def _climb(self, room: Tensor, need: Tensor) -> Tensor:
        enough = need * (1 - torch.finfo(need.dtype).eps ** 0.5)
        before, reached_before = torch.zeros_like(need), torch.zeros_like(need)
        length = torch.where(self.growth > 0, need / self.growth, 0)
        for _ in range(_MAX_CLIMBS):
            sizes = torch.minimum(room, length[:, None] if self.speed is None else length[:, None] * self.speed)
            reached = (sizes * self.weight).sum(dim=1)
            # A row stops at its hyperplane, or when all its pixels have met the box, independently of other rows.
            climbs = (reached < enough) & (reached > reached_before)
            if not bool(climbs.any()):
                break
            longer = length + (need - reached) * (length - before) / (reached - reached_before)
            before, reached_before = torch.where(climbs, length, before), torch.where(climbs, reached, reached_before)
            length = torch.where(climbs, longer, length)
        return sizes
