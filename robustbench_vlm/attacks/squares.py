"""What Square Attack proposes: stripes and squares for Linf, tiles and moved energy for L2 (arXiv:1912.00049)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from robustbench_vlm import randomness
from robustbench_vlm.attacks.balls import as_factor
from robustbench_vlm.attacks.slots import Rows

_TINY = 1e-12


@dataclass(frozen=True)
class Proposals:
    """How one norm starts, and how it changes the best image so far; both return candidates (B, 3, H, W).

    `first` gets the rows and eps; `changed` also the best images, the number of the query (B,) and the side of each
    row's square (B,).
    """

    first: Callable[[Rows, float], Tensor]
    changed: Callable[[Rows, float, Tensor, Tensor, Tensor], Tensor]
    least_side: int
    odd: bool

    def sides(self, images: Tensor, share: Tensor) -> Tensor:
        """Return the side of a square that covers `share` (B,) of the image, int64 (B,)."""
        height, width = images.shape[2:]
        side = (share * (height * width)).sqrt().round().long().clamp_min(self.least_side)
        if self.odd:
            side += 1 - side % 2
        return side.clamp_max(min(height, width))


def stripes(rows: Rows, eps: float) -> Tensor:
    """Move each column of each channel to one end of the Linf ball."""
    _, channels, _, width = rows.images.shape
    signs = randomness.signs(rows.keys, 0, (channels, 1, width)).to(rows.images.dtype)
    return (rows.images + eps * signs).clamp_(0, 1)


def recoloured_square(rows: Rows, eps: float, best: Tensor, query: Tensor, side: Tensor) -> Tensor:
    """Move one square to one end of the Linf ball, the same end in all of a channel (algorithm 2)."""
    top, left = _corners(rows, query, side, 2).split(1, dim=1)
    signs = randomness.signs(rows.keys, 2 * query + 1, (rows.images.shape[1], 1, 1)).to(best.dtype)
    colour = torch.add(rows.images, signs, alpha=eps).clamp_(0, 1)
    down = torch.arange(best.shape[2], device=best.device) - top
    right = torch.arange(best.shape[3], device=best.device) - left
    inside = ((down >= 0) & (down < side[:, None]))[:, :, None] & ((right >= 0) & (right < side[:, None]))[:, None, :]
    return torch.where(inside[:, None], colour, best)


def tiles(rows: Rows, eps: float) -> Tensor:
    """Cover the image with square tiles of a fifth of its side, each a bump of random signs and direction."""
    height, width = rows.images.shape[2:]
    keys = randomness.derive(rows.keys, "tiles")
    side = max(min(height, width) // 5, 1)
    delta = torch.zeros_like(rows.images)
    tops = range(height % side // 2, height - side + 1, side)
    lefts = range(width % side // 2, width - side + 1, side)
    for number, (top, left) in enumerate(product(tops, lefts)):
        counter = torch.full_like(keys, number)
        delta[:, :, top : top + side, left : left + side] = _bumps(keys, counter, delta, side).unflatten(2, (side, side))
    return _at_length(rows.images, delta, eps)


def moved_energy(rows: Rows, eps: float, best: Tensor, query: Tensor, side: Tensor) -> Tensor:
    """Take the change out of one window and put it, with what eps leaves, into another as a bump (algorithm 3)."""
    top, left, other_top, other_left = _corners(rows, query, side, 4).unbind(1)
    delta = (best - rows.images).flatten(2)
    changed = torch.empty_like(delta)
    for length in side.unique().tolist():
        some = (side == length).nonzero().squeeze(1)
        place = _window(top[some], left[some], length, best)
        other = _window(other_top[some], other_left[some], length, best)
        bumps = _bumps(rows.keys[some], 2 * query[some] + 1, best, length)
        changed[some] = _with_energy_moved(delta[some], place, other, bumps, eps)
    return _at_length(rows.images, changed.view_as(best), eps)


PROPOSALS = {
    "Linf": Proposals(stripes, recoloured_square, least_side=1, odd=False),
    "L2": Proposals(tiles, moved_energy, least_side=3, odd=True),
}


def _corners(rows: Rows, query: Tensor, side: Tensor, count: int) -> Tensor:
    height, width = rows.images.shape[2:]
    positions = torch.stack([height - side, width - side], dim=1) + 1
    return randomness.integers(rows.keys, 2 * query, (count,), positions.repeat(1, count // 2))


def _window(top: Tensor, left: Tensor, side: int, images: Tensor) -> Tensor:
    # Places of a window's pixels in the flattened image, (B, 1, side * side).
    steps = torch.arange(side, device=images.device)
    down, right = (top[:, None] + steps) * images.shape[3], left[:, None] + steps
    return (down[:, :, None] + right[:, None, :]).flatten(1)[:, None]


def _with_energy_moved(delta: Tensor, place: Tensor, other: Tensor, bumps: Tensor, eps: float) -> Tensor:
    # All of shape (B, channels, pixels): the energies are those of a channel, the free one is split among the channels.
    channels = delta.shape[1]
    place, other = place.expand(-1, channels, -1), other.expand(-1, channels, -1)
    both = torch.zeros_like(delta, dtype=torch.bool).scatter(2, place, True).scatter(2, other, True)
    squares = delta.square()
    free = (eps**2 - squares.sum(dim=(1, 2))).clamp_min(0).view(-1, 1, 1) / channels
    energy = free + (squares * both).sum(dim=2, keepdim=True)
    content = bumps + _unit(delta.gather(2, place))
    return delta.masked_fill(both, 0).scatter(2, place, _unit(content) * energy.sqrt())


def _bumps(keys: Tensor, counter: Tensor, images: Tensor, side: int) -> Tensor:
    # A bump for each row and channel, of a random sign; a row's channels share its direction. (B, channels, side * side)
    signs = randomness.signs(keys, counter, (images.shape[1] + 1, 1)).to(images.dtype)
    upright = torch.tensor(_bump(side), dtype=images.dtype, device=images.device)
    turned = torch.where(signs[:, -1:] > 0, upright.flatten(), upright.T.flatten())
    return turned * signs[:, :-1]


@lru_cache(maxsize=1024)
def _bump(side: int) -> list[list[float]]:
    # Two halves of opposite sign, each a sum of nested squares of height 1 / k ** 2 around its centre; of length 1.
    halves = [_hill(side // 2, side), -_hill(side - side // 2, side)]
    bump = torch.cat(halves)
    return (bump / bump.norm()).tolist()  # type: ignore[no-any-return]


def _hill(height: int, width: int) -> Tensor:
    down = (torch.arange(height) - height // 2).abs()
    right = (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(down[:, None], right[None, :])
    count = max(height, width) // 2 + 1
    terms = 1 / torch.arange(1, count + 1, dtype=torch.float64).square()
    hill = terms.flip(0).cumsum(0).flip(0)[ring.clamp_max(count - 1)]
    return hill / hill.norm().clamp_min(_TINY)


def _unit(values: Tensor) -> Tensor:
    return values / (values.norm(dim=-1, keepdim=True) + _TINY)


def _at_length(images: Tensor, delta: Tensor, eps: float) -> Tensor:
    length = delta.flatten(1).norm(dim=1) + _TINY
    return (images + delta * as_factor(eps / length)).clamp_(0, 1)
