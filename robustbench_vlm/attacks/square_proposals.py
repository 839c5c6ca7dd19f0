"""Candidate images of Square Attack: stripes and squares for Linf, tiles and windows for L2 (arXiv:1912.00049)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from robustbench_vlm.attacks.projections import as_factor
from robustbench_vlm.core import random as randomness

_TINY = 1e-12


@dataclass(frozen=True)
class CleanImages:
    """Clean images and the random numbers of their samples."""

    images: Tensor
    """Clean images, float32 (B, 3, H, W) in [0, 1]."""
    keys: Tensor
    """The key of each sample's random numbers, int64 (B,)."""


@dataclass(frozen=True)
class Proposals:
    """The functions that make the candidates for one norm. Candidates are float32 (B, 3, H, W) in [0, 1]."""

    first: Callable[[CleanImages, float], Tensor]
    """Returns the initial images. The arguments are the clean images and eps."""
    changed: Callable[[CleanImages, float, Tensor, Tensor, Tensor], Tensor]
    """Returns changed copies of the best images.

    The arguments are the clean images, eps, the best images float32 (B, 3, H, W), the query numbers int64 (B,) and the
    sides of the squares in pixels, int64 (B,)."""
    least_side: int
    """The smallest side of a square in pixels."""
    odd: bool
    """Whether the side of a square must be odd."""

    def sides(self, share: Tensor, height: int, width: int) -> Tensor:
        """Return the sides in pixels, int64 (B,), of squares that cover the fraction `share`, (B,), of an image."""
        side = (share * (height * width)).sqrt().round().long().clamp_min(self.least_side)
        if self.odd:
            side += 1 - side % 2
        return side.clamp_max(min(height, width))


def stripes(rows: CleanImages, eps: float) -> Tensor:
    """Add eps or -eps to each column of each channel of the clean images, float32 (B, 3, H, W)."""
    _, channels, _, width = rows.images.shape
    signs = randomness.signs(rows.keys, 0, (channels, 1, width)).to(rows.images.dtype)
    return (rows.images + eps * signs).clamp_(0, 1)


def recoloured_square(rows: CleanImages, eps: float, best: Tensor, query: Tensor, side: Tensor) -> Tensor:
    """Set one square of each best image to the clean image plus or minus eps, one sign per channel (algorithm 2)."""
    channels = best.shape[1]
    drawn = randomness.integers(rows.keys, query, (2 + channels,), _ranges(best, side, [2] * channels))
    signs = (2 * drawn[:, 2:, None] - 1).to(best.dtype)
    candidate = best.clone()
    for length, some in _groups(side):
        pixels = _pixels(best, drawn[some], some, length)
        colour = (rows.images.take(pixels) + eps * signs[some]).clamp_(0, 1)
        candidate.put_(pixels, colour)
    return candidate


def tiles(rows: CleanImages, eps: float) -> Tensor:
    """Add square tiles to the clean images, scaled to L2 norm eps, float32 (B, 3, H, W).

    The side of a tile is a fifth of the side of the image. Each tile is a `_bump` of random sign and direction.
    """
    height, width = rows.images.shape[2:]
    keys = randomness.derive(rows.keys, "tiles")
    side = max(min(height, width) // 5, 1)
    delta = torch.zeros_like(rows.images)
    tops = range(height % side // 2, height - side + 1, side)
    lefts = range(width % side // 2, width - side + 1, side)
    for number, (top, left) in enumerate(product(tops, lefts)):
        bumps = _bumps(keys, torch.full_like(keys, number), delta, side)
        delta[:, :, top : top + side, left : left + side] = bumps.unflatten(2, (side, side))
    return _at_length(rows.images, delta, eps)


def moved_energy(rows: CleanImages, eps: float, best: Tensor, query: Tensor, side: Tensor) -> Tensor:
    """Move the perturbation of one window of each best image into another window (algorithm 3).

    Both windows are emptied. The first one gets a bump with the energy of both, plus the energy that is left up to eps.
    """
    drawn = randomness.integers(rows.keys, 2 * query, (4,), _ranges(best, side, []).repeat(1, 2))
    delta = best - rows.images
    # The energy per channel by which the squared perturbation is below eps squared.
    free = (eps**2 - delta.square().sum(dim=(1, 2, 3))).clamp_min(0).view(-1, 1, 1) / best.shape[1]
    changed = delta.clone()
    for length, some in _groups(side):
        place, other = _pixels(best, drawn[some, :2], some, length), _pixels(best, drawn[some, 2:], some, length)
        bumps = _bumps(rows.keys[some], 2 * query[some] + 1, best, length)
        # The windows are emptied one after the other, so that the energy of their overlap is counted once.
        energy = free[some] + delta.take(place).square().sum(dim=2, keepdim=True)
        changed.put_(place, torch.zeros_like(bumps))
        energy += changed.take(other).square().sum(dim=2, keepdim=True)
        changed.put_(other, torch.zeros_like(bumps))
        changed.put_(place, _unit(bumps + _unit(delta.take(place))) * energy.sqrt())
    return _at_length(rows.images, changed, eps)


PROPOSALS = {
    "Linf": Proposals(stripes, recoloured_square, least_side=1, odd=False),
    "L2": Proposals(tiles, moved_energy, least_side=3, odd=True),
}


def _ranges(images: Tensor, side: Tensor, others: list[int]) -> Tensor:
    # Returns the number of values of each random number, (B, 2 + len(others)): the square's top, its left, and others.
    height, width = images.shape[2:]
    fixed = torch.tensor(others, dtype=torch.int64, device=side.device).expand(len(side), -1)
    return torch.cat([(height + 1 - side)[:, None], (width + 1 - side)[:, None], fixed], dim=1)


def _groups(side: Tensor) -> list[tuple[int, Tensor]]:
    # Returns each side with the rows that have squares of this side. Rows that entered the batch later differ in side.
    return [(length, (side == length).nonzero().squeeze(1)) for length in sorted(set(side.tolist()))]


def _pixels(images: Tensor, corners: Tensor, some: Tensor, side: int) -> Tensor:
    # Returns the indices of the squares' pixels in the flattened images, (N, channels, side * side), for the N rows
    # `some`. Corners (N, 2) are the top and the left of each square.
    _, channels, height, width = images.shape
    steps = torch.arange(side, device=images.device)
    square = (steps[:, None] * width + steps).flatten()
    corner = some * (channels * height * width) + corners[:, 0] * width + corners[:, 1]
    channel = torch.arange(channels, device=images.device) * (height * width)
    return corner[:, None, None] + channel[:, None] + square


def _bumps(keys: Tensor, counter: Tensor, images: Tensor, side: int) -> Tensor:
    # Returns a bump of random sign for each row and channel, (B, channels, side * side). Channels share the direction.
    signs = randomness.signs(keys, counter, (images.shape[1] + 1, 1)).to(images.dtype)
    upright = torch.tensor(_bump(side), dtype=images.dtype, device=images.device)
    turned = torch.where(signs[:, -1:] > 0, upright.flatten(), upright.T.flatten())
    return turned * signs[:, :-1]


@lru_cache(maxsize=1024)
def _bump(side: int) -> list[list[float]]:
    # Returns an array of norm 1 with two halves of opposite sign. Each half is a sum of nested squares around its
    # center; the k-th square has the height 1 / k ** 2.
    halves = [_hill(side // 2, side), -_hill(side - side // 2, side)]
    bump = torch.cat(halves)
    values: list[list[float]] = (bump / bump.norm()).tolist()
    return values


def _hill(height: int, width: int) -> Tensor:
    down = (torch.arange(height) - height // 2).abs()
    right = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(down[:, None], right[None, :])
    count = max(height, width) // 2 + 1
    terms = 1 / torch.arange(1, count + 1, dtype=torch.float64).square()
    hill = terms.flip(0).cumsum(0).flip(0)[ring.clamp_max(count - 1)]
    length: Tensor = hill.norm().clamp_min(_TINY)
    return hill / length


def _unit(values: Tensor) -> Tensor:
    length: Tensor = values.norm(dim=-1, keepdim=True)
    return values / (length + _TINY)


def _at_length(images: Tensor, delta: Tensor, eps: float) -> Tensor:
    length = delta.flatten(1).norm(dim=1) + _TINY
    return (images + delta * as_factor(eps / length)).clamp_(0, 1)
