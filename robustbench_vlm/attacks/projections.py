"""The geometry of a threat as gradient attacks need it: start, steepest direction, projection (arXiv:1706.06083)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import Threat


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


def as_factor(values: Tensor) -> Tensor:
    """Return (B,) as (B, 1, 1, 1), to multiply images with."""
    return values.view(-1, 1, 1, 1)
