"""Random views of images: crops, flips and AugMix chains (Hendrycks et al., ICLR 2020, arXiv 1912.02781).

The views are differentiable with respect to the pixels. Each sample has a key (an integer), from which
all its random numbers are computed.
"""

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core import random as randomness

_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CHAINS, _DEPTH = 3, 3
_SHIFT, _SHEAR, _TURN = 0.1, 0.1, torch.pi / 18
"""The largest shift, shear and rotation of a geometric step. These values correspond to severities 1 to 3 of AugMix.
The shift is a fraction of the side of the image, the shear is in pixels per pixel, and the rotation is in radians.
"""


def random_views(keys: Tensor, images: Tensor, count: int) -> Tensor:
    """Return `count` views of each image, float32 (B, count, 3, H, W) in [0, 1]. The first view is the image.

    `keys`, int64 (B,), decide the random numbers of the samples. `images` is float32 (B, 3, H, W) in [0, 1].
    """
    if count == 1:
        return images[:, None]
    cropped, mixed, kept = parts_of_views(keys, images, count)
    views = (_column(kept) * cropped + (1 - _column(kept)) * mixed).unflatten(0, (len(images), count - 1))
    return torch.cat([images[:, None], views], dim=1)


def parts_of_views(keys: Tensor, images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of all views of B images except the first: N = B * (count - 1) crops, mixtures and shares.

    A view is share * crop + (1 - share) * mixture. The crops and the mixtures of their AugMix chains are float32
    (N, 3, H, W) in [0, 1], and the shares are float32 (N,) in [0, 1). `random_views` explains the arguments.
    """
    draws = randomness.uniform(keys, 0, (count - 1, 8 + _CHAINS * (2 * _DEPTH + 3))).to(images).flatten(0, 1)
    cropped = random_crops(images.repeat_interleave(count - 1, dim=0), draws[:, :5])
    first, second = draws[:, 5:7].sort(dim=1).values.unbind(dim=1)
    # The gaps between sorted uniform numbers in [0, 1] have a Dirichlet distribution with all parameters 1.
    shares = torch.stack([first, second - first, 1 - second], dim=1)
    chains = draws[:, 8:].unflatten(1, (_CHAINS, -1)).unbind(dim=1)
    mixed = torch.zeros_like(cropped)
    for share, chain in zip(shares.unbind(dim=1), chains, strict=True):
        mixed = mixed + _column(share) * _chain(cropped, chain)
    return cropped, mixed, draws[:, 7]


def random_crops(images: Tensor, draws: Tensor, area: tuple[float, float] = _AREA) -> Tensor:
    """Return a random crop of each image (N, 3, H, W), resized to H x W. Half of the crops are mirrored.

    `draws` are uniform random numbers, (N, 5) in [0, 1). `area` has the smallest and the largest area of a crop, as
    fractions of the image. The aspect ratio is between 3/4 and 4/3.
    """
    return _moved(images, _crop(draws, area))


def _crop(draws: Tensor, limits: tuple[float, float]) -> Tensor:
    """Return affine maps (N, 2, 3) of random resized crops and flips for uniform random numbers (N, 5) in [0, 1)."""
    area = limits[0] + (limits[1] - limits[0]) * draws[:, 0]
    ratio = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** draws[:, 1]
    width, height = ((area * ratio) ** 0.5).clamp_max(1), ((area / ratio) ** 0.5).clamp_max(1)
    mirror = torch.where(draws[:, 2] < 0.5, -1.0, 1.0).to(draws)
    zero = torch.zeros_like(width)
    across = torch.stack([mirror * width, zero, (1 - width) * (2 * draws[:, 3] - 1)], dim=1)
    down = torch.stack([zero, height, (1 - height) * (2 * draws[:, 4] - 1)], dim=1)
    return torch.stack([across, down], dim=1)


def _chain(images: Tensor, draws: Tensor) -> Tensor:
    """Apply an AugMix chain to images (N, 3, H, W): one to three geometric steps and one change of tone.

    `draws`, (N, 2 * _DEPTH + 3), are uniform random numbers in [0, 1). The tone is unchanged, stretched or solarised.
    """
    depth = (draws[:, 0] * _DEPTH).floor()
    whole = torch.eye(3).to(images).expand(len(images), 3, 3)
    for number in range(_DEPTH):
        kind, size = draws[:, 3 + 2 * number], 2 * draws[:, 4 + 2 * number] - 1
        step = torch.where((number <= depth).view(-1, 1, 1), _step(kind, size), torch.eye(3).to(images))
        whole = whole @ step
    moved = _moved(images, whole[:, :2])
    tone, threshold = (draws[:, 1] * 3).floor(), 0.5 + draws[:, 2] / 2
    low, high = moved.amin(dim=(2, 3), keepdim=True), moved.amax(dim=(2, 3), keepdim=True)
    stretched = (moved - low) / (high - low).clamp_min(1e-3)
    solarised = torch.where(moved > _column(threshold), 1 - moved, moved)
    return torch.where(_column(tone) == 1, stretched, torch.where(_column(tone) == 2, solarised, moved))


def _step(kind: Tensor, size: Tensor) -> Tensor:
    """Return the affine maps (N, 3, 3) of N geometric steps. Each is a shift, a shear or a rotation.

    `kind`, (N,) in [0, 1), selects shift, shear or rotation. `size`, (N,) in [-1, 1), scales the largest step.
    """
    one, zero = torch.ones_like(size), torch.zeros_like(size)
    cosine, sine = (_TURN * size).cos(), (_TURN * size).sin()
    kinds = torch.stack(
        [
            torch.stack([one, zero, 2 * _SHIFT * size, zero, one, zero], dim=1),
            torch.stack([one, zero, zero, zero, one, 2 * _SHIFT * size], dim=1),
            torch.stack([one, _SHEAR * size, zero, zero, one, zero], dim=1),
            torch.stack([one, zero, zero, _SHEAR * size, one, zero], dim=1),
            torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1),
        ],
        dim=1,
    )
    chosen = kinds[torch.arange(len(kind), device=kind.device), (kind * kinds.shape[1]).long()].unflatten(1, (2, 3))
    return torch.cat([chosen, torch.tensor([[[0.0, 0.0, 1.0]]]).to(size).expand(len(size), 1, 3)], dim=1)


def _moved(images: Tensor, maps: Tensor) -> Tensor:
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
