"""Linf and L2 balls: projections, random starting points and steepest ascent directions (arXiv:1706.06083).

The module also projects onto hyperplanes, for the attack FAB.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import Threat

_MAX_CLIMBS = 100


def project(threat: Threat, images: Tensor, adversarial: Tensor) -> Tensor:
    """Move `adversarial` into the threat's ball around `images` and into [0, 1]. Return float32 (B, 3, H, W).

    `images` and `adversarial` are float32 (B, 3, H, W). A non-finite value is replaced by the value of the clean pixel.
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
    """Return the size of each sample's perturbation in the threat's norm, float32 (B,), for pixels in [0, 1].

    `images` and `adversarial` are float32 (B, 3, H, W).
    """
    delta = (adversarial - images).flatten(1)
    return delta.abs().amax(dim=1) if threat.norm == "Linf" else delta.norm(dim=1)


def as_factor(values: Tensor) -> Tensor:
    """Reshape values (B,) to (B, 1, 1, 1), so that they can be multiplied with images (B, 3, H, W)."""
    return values.view(-1, 1, 1, 1)


@dataclass
class LinfBall:
    """The points x in [0, 1] with |x - image| <= eps in every pixel, for each image of a batch."""

    low: Tensor
    """The lowest value of each pixel, float32 (B, 3, H, W)."""
    high: Tensor
    """The highest value of each pixel, float32 (B, 3, H, W)."""

    def clip(self, points: Tensor) -> Tensor:
        """Return the nearest points of the ball to points (B, 3, H, W), in the same shape."""
        return torch.clamp(points, self.low, self.high)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        """Return the steepest ascent direction of Linf norm 1 for a gradient (B, 3, H, W), in the same shape."""
        return gradient.sign()

    @staticmethod
    def inside(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Draw uniform random points of the unit ball around zero, (B, 3, H, W).

        `keys` and `counter`, int64 (B,) each, decide the random numbers. `images` give the shape and the dtype.
        """
        return (randomness.uniform(keys, counter, images.shape[1:]) * 2 - 1).to(images.dtype)

    @staticmethod
    def boundary(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Draw random points of Linf norm 1, (B, 3, H, W).

        Each is a random point from `inside`, divided by its largest magnitude.
        """
        noise = LinfBall.inside(keys, counter, images)
        return noise / as_factor(noise.flatten(1).abs().amax(dim=1).clamp_min(1e-12))


@dataclass
class L2Ball:
    """The points x in [0, 1] with |x - image|_2 <= eps, for each image of a batch."""

    images: Tensor
    """The centers of the balls, float32 (B, 3, H, W) in [0, 1]."""
    eps: float | Tensor
    """The radius, for pixels in [0, 1]: one for all images, or float32 (B,)."""

    def clip(self, points: Tensor) -> Tensor:
        """Scale points (B, 3, H, W) to distance eps from the images if they are further away.

        Then clip them to [0, 1].
        """
        delta = points - self.images
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        delta *= as_factor((self.eps / length).clamp_max(1))
        return delta.add_(self.images).clamp_(0, 1)

    @staticmethod
    def direction(gradient: Tensor) -> Tensor:
        """Return the gradient (B, 3, H, W) scaled to L2 norm 1. A gradient of zero stays zero."""
        # Divide by the largest entry before squaring, because float32 cannot represent the squares of very
        # small or large entries.
        scaled = gradient / as_factor(gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny))
        return scaled / as_factor(scaled.flatten(1).norm(dim=1).clamp_min(1e-12))

    @staticmethod
    def inside(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Draw random points of the unit ball around zero with uniform direction and uniform length, (B, 3, H, W).

        The arguments are those of `LinfBall.inside`.
        """
        length = randomness.uniform(randomness.derive(keys, "length"), counter, (1,)).to(images.dtype)
        return L2Ball.boundary(keys, counter, images) * as_factor(length)

    @staticmethod
    def boundary(keys: Tensor, counter: Tensor, images: Tensor) -> Tensor:
        """Draw uniform random points of the unit sphere, (B, 3, H, W). The arguments are those of `LinfBall.inside`."""
        return L2Ball.direction(randomness.normal(keys, counter, images.shape[1:]).to(images.dtype))


Ball = LinfBall | L2Ball


def ball_around(threat: Threat, images: Tensor) -> Ball:
    """Return the balls of a threat around images (B, 3, H, W)."""
    eps = float(threat.eps)
    if threat.norm == "Linf":
        return LinfBall((images - eps).clamp_min_(0), (images + eps).clamp_max_(1))
    return L2Ball(images, eps)


@dataclass(frozen=True)
class Hyperplanes:
    """One hyperplane for each sample, and the shortest steps onto it inside [0, 1] (arXiv:1907.02044, section 2.2).

    A step of length t moves each pixel by t times its speed, until the pixel reaches 0 or 1. The distance covered
    towards the hyperplane is a concave and piecewise linear function of t. Therefore the secant method approaches the
    right t from below. On the last linear piece it finds the exact t. The method needs a few passes over the pixels and
    no sorting.
    """

    sign: Tensor
    """Signs of the normal, float32 (B, D)."""
    weight: Tensor
    """Absolute values of the normal, float32 (B, D)."""
    speed: Tensor | None
    """Speed of each pixel, float32 (B, D). For L2, it is proportional to |normal|. For Linf, this field is None and all
    speeds are 1."""
    growth: Tensor
    """Distance covered towards the hyperplane by a step of length 1, if no pixel reaches 0 or 1, float32 (B,)."""

    @classmethod
    def of(cls, normal: Tensor, norm: str) -> "Hyperplanes":
        """Return the hyperplanes with normals float32 (B, D). `norm`, "Linf" or "L2", is the norm of step lengths."""
        weight = normal.abs()
        if norm == "Linf":
            return cls(normal.sign(), weight, None, weight.sum(dim=1))
        # Divide the speeds by the largest speed, because the squares of very small numbers are zero in float32.
        speed = weight / weight.amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return cls(normal.sign(), weight, speed, (weight * speed).sum(dim=1))

    def shortest_step(self, points: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shortest step from each of the points (B, D) to its hyperplane. All pixels stay in [0, 1].

        The step solves gap + <normal, step> = 0. `gap` is float32 (B,), and <normal, step> is the inner product. The
        method returns `sizes`, float32 (B, D), which are not negative, and `side`, float32 (B,), which is -1 or 1. The
        step is sign * sizes * side. Some hyperplanes contain no image with pixels in [0, 1]. The step then leads to the
        image with pixels 0 or 1 that is closest to the hyperplane.
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
            # A sample stops when it reaches its hyperplane, or when all its pixels are 0 or 1. This does not
            # depend on other samples.
            climbs = (reached < enough) & (reached > reached_before)
            if not bool(climbs.any()):
                break
            longer = length + (need - reached) * (length - before) / (reached - reached_before)
            before, reached_before = torch.where(climbs, length, before), torch.where(climbs, reached, reached_before)
            length = torch.where(climbs, longer, length)
        return sizes
