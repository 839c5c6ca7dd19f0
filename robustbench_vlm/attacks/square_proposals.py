"""Candidate images of Square Attack: stripes and squares for Linf, tiles and windows for L2 (arXiv:1912.00049)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from robustbench_vlm.attacks.projections import as_factor
from robustbench_vlm.core import random as randomness

_TINY = 1e-12


@dataclass(frozen=True)
class CleanImages:
    """Clean images, and one key for random numbers per image."""

    images: Tensor
    """Clean images, float32 (B, 3, H, W) in [0, 1]."""
    keys: Tensor
    """The key of each sample, int64 (B,): the seed of the random numbers that the attack draws for the sample."""


class ChangedCopies(Protocol):
    """Type of a function that returns changed copies of the best images so far."""

    def __call__(
        self, rows: CleanImages, eps: float, best: Tensor, query: Tensor, side: Tensor, row: Tensor | None = None
    ) -> Tensor:
        """Return N changed copies, float32 (N, 3, H, W).

        `best`, float32 (B, 3, H, W), are the best images so far. `query`, int64 (N,), is the query index of each copy,
        and `side`, int64 (N,), the side of its square in pixels. `row`, int64 (N,), is the index of the sample of each
        copy. If it is None, there is one copy per sample.
        """


@dataclass(frozen=True)
class Proposals:
    """The functions that make candidate images for one norm. Candidates are float32 (B, 3, H, W) in [0, 1]."""

    first: Callable[[CleanImages, float], Tensor]
    """A function that returns the first candidates. Its arguments are the clean images and eps."""
    changed: "ChangedCopies"
    """A function that returns changed copies of the best images so far."""
    least_side: int
    """The smallest side of a square in pixels."""
    odd: bool
    """True if the side of a square must be odd."""

    def sides(self, share: Tensor, height: int, width: int) -> Tensor:
        """Return the side of each sample's square in pixels, int64 (B,).

        `share`, float32 (B,), is the fraction of the image area that the square covers. `height` and `width` are the
        size of the image in pixels.
        """
        side = (share * (height * width)).sqrt().round().long().clamp_min(self.least_side)
        if self.odd:
            side += 1 - side % 2
        return side.clamp_max(min(height, width))


def stripes(rows: CleanImages, eps: float) -> Tensor:
    """Add eps or -eps at random to each column of each channel of the images. Return float32 (B, 3, H, W)."""
    _, channels, _, width = rows.images.shape
    signs = randomness.signs(rows.keys, 0, (channels, 1, width)).to(rows.images.dtype)
    return (rows.images + eps * signs).clamp_(0, 1)


def recoloured_square(
    rows: CleanImages, eps: float, best: Tensor, query: Tensor, side: Tensor, row: Tensor | None = None
) -> Tensor:
    """Replace one random square of each image `best` by the clean image plus or minus eps (algorithm 2).

    The sign is random for each channel. `ChangedCopies` explains the arguments and the result.
    """
    channels = best.shape[1]
    keys, candidate = (rows.keys, best.clone()) if row is None else (rows.keys[row], best[row])
    drawn = randomness.integers(keys, query, (2 + channels,), _ranges(best, side, [2] * channels))
    change = (2 * drawn[:, 2:, None] - 1).to(best.dtype).mul_(eps)
    for length, some in _groups(side):
        pixels = _pixels(best, drawn[some], _start(candidate, None)[some], length)
        # The clean image of a copy is the image of its sample, which may be at another position of the batch.
        clean = pixels if row is None else _pixels(best, drawn[some], _start(best, row)[some], length)
        candidate.put_(pixels, rows.images.take(clean).add_(change[some]).clamp_(0, 1))
    return candidate


def tiles(rows: CleanImages, eps: float) -> Tensor:
    """Add a perturbation of square tiles with L2 norm eps to the clean images. Return float32 (B, 3, H, W).

    The side of a tile is one fifth of the side of the image. Each tile is a `_bump` with a random sign and direction.
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


def moved_energy(
    rows: CleanImages, eps: float, best: Tensor, query: Tensor, side: Tensor, row: Tensor | None = None
) -> Tensor:
    """Move the perturbation from one window of each image `best` into another window (algorithm 3).

    The perturbation is set to zero in both windows. Then the first window gets a new perturbation, a `_bump`. Its
    energy (squared L2 norm) is the previous energy of both windows plus the unused energy up to the radius eps.
    `ChangedCopies` explains the arguments and the result.
    """
    if row is not None:
        rows, best = CleanImages(rows.images[row], rows.keys[row]), best[row]
    drawn = randomness.integers(rows.keys, 2 * query, (4,), _ranges(best, side, []).repeat(1, 2))
    delta = best - rows.images
    # `free` is the difference between eps ** 2 and the squared norm of the current perturbation, divided
    # equally among the channels.
    free = (eps**2 - delta.square().sum(dim=(1, 2, 3))).clamp_min(0).view(-1, 1, 1) / best.shape[1]
    changed = delta.clone()
    for length, some in _groups(side):
        start = _start(best, None)[some]
        place, other = _pixels(best, drawn[some, :2], start, length), _pixels(best, drawn[some, 2:], start, length)
        bumps = _bumps(rows.keys[some], 2 * query[some] + 1, best, length)
        # The windows of a sample may overlap. The first is therefore set to zero before the energy of the second is
        # added. If not, the energy of the overlap would be counted twice.
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


def _ranges(images: Tensor, side: Tensor, further: list[int]) -> Tensor:
    # Return an exclusive upper bound for each random integer, int64 (B, 2 + len(further)). The first two bounds are for
    # the top and the left of the square. The other bounds are `further`, which are the same for all samples.
    height, width = images.shape[2:]
    fixed = torch.tensor(further, dtype=torch.int64, device=side.device).expand(len(side), -1)
    return torch.cat([(height + 1 - side)[:, None], (width + 1 - side)[:, None], fixed], dim=1)


def _groups(side: Tensor) -> list[tuple[int, Tensor | slice]]:
    # Return pairs (side, index). The int64 (N,) array `index` contains the batch positions of the N samples whose
    # square has this side. Sides differ, because samples enter the batch at different times. If all sides are equal,
    # the index is a slice, because indexing with a slice copies nothing.
    lengths = sorted(set(side.tolist()))
    if len(lengths) == 1:
        return [(lengths[0], slice(None))]
    return [(length, (side == length).nonzero().squeeze(1)) for length in lengths]


def _start(images: Tensor, row: Tensor | None) -> Tensor:
    # Return the index of the first pixel of images in the flattened `images`, int64 (N,). `row`, int64 (N,), contains
    # the positions of the N images in the batch. If it is None, the result is for all images.
    row = torch.arange(len(images), device=images.device) if row is None else row
    return row * images[0].numel()


def _pixels(images: Tensor, corners: Tensor, start: Tensor, side: int) -> Tensor:
    # Return the indices of the pixels of squares in the flattened `images`, int64 (N, channels, side * side). `start`,
    # int64 (N,), contains the index of the first pixel of N images. `corners`, int64 (N, 2 or more), contains the top
    # and left of the square in each of them.
    square = _square(images.shape[1:], side, images.device)
    corner = start + corners[:, 0] * images.shape[3] + corners[:, 1]
    return corner[:, None, None] + square


@lru_cache(maxsize=32)
def _square(shape: torch.Size, side: int, device: torch.device) -> Tensor:
    # Return the indices of the pixels of the top left square in a flattened image of this shape, int64 (channels,
    # side * side).
    channels, height, width = shape
    steps = torch.arange(side, device=device)
    channel = torch.arange(channels, device=device) * (height * width)
    return channel[:, None] + (steps[:, None] * width + steps).flatten()


def _bumps(keys: Tensor, counter: Tensor, images: Tensor, side: int) -> Tensor:
    # Return one bump per sample and channel, float32 (B, channels, side * side). The sign is drawn for each channel.
    # The direction (upright or transposed) is drawn for each sample, and all its channels share it.
    signs = randomness.signs(keys, counter, (images.shape[1] + 1, 1)).to(images.dtype)
    upright = torch.tensor(_bump(side), dtype=images.dtype, device=images.device)
    turned = torch.where(signs[:, -1:] > 0, upright.flatten(), upright.T.flatten())
    return turned * signs[:, :-1]


@lru_cache(maxsize=1024)
def _bump(side: int) -> list[list[float]]:
    # Return an array with L2 norm 1. One half is positive and one is negative. Each half is a sum of nested squares
    # around its center. The k-th smallest of these squares adds 1 / k ** 2 to each of its pixels.
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
