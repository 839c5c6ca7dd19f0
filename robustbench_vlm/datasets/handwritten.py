"""scikit-learn's handwritten digits: real images that nobody here drew (UCI, Alpaydin and Kaynak 1998)."""

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.world.vocabulary import NUMBERS


class DigitsSource:
    """The 1797 digits, 8 x 8 grey values from 0 to 16, enlarged four times (bilinear)."""

    def __init__(self) -> None:
        rows = torch.tensor(_rows(), dtype=torch.int64)
        self._images = rows[:, :64].unflatten(1, (8, 8))
        self.ids = tuple(f"{number:04d}" for number in range(len(rows)))
        self.labels = tuple(rows[:, 64].tolist())

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return digits, uint8 (B, 3, 32, 32)."""
        large = _enlarge(_enlarge(self._images[list(indices)]).transpose(1, 2)).transpose(1, 2)
        pixels = (large * 255 + 8 * 64) // (16 * 64)
        return pixels.to(torch.uint8).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def _rows() -> list[list[int]]:
    """Return the 64 grey values and the digit of each sample, from the file that scikit-learn's load_digits reads.

    Importing the library for it would take three seconds in every process.
    """
    library = find_spec("sklearn")
    assert library is not None and library.submodule_search_locations
    file = Path(library.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    return [[int(float(value)) for value in line.split(",")] for line in lines]


def _enlarge(images: Tensor) -> Tensor:
    """Return images (B, 8, W) with four rows for each, interpolated linearly, times 8: exact in integers."""
    above = torch.cat([images[:, :1], images[:, :-1]], dim=1)
    below = torch.cat([images[:, 1:], images[:, -1:]], dim=1)
    rows = [3 * above + 5 * images, above + 7 * images, 7 * images + below, 5 * images + 3 * below]
    return torch.stack(rows, dim=2).flatten(1, 2)


HANDWRITTEN = Dataset(
    name="handwritten",
    classes=tuple(words[0] for words in NUMBERS),
    prompt="a picture of a handwritten {}",
    source="robustbench_vlm.datasets.handwritten:DigitsSource",
    split="all",
    description="real handwritten digits, scanned by NIST and reduced to 8 x 8",
    origin="scikit-learn's load_digits: UCI Optical Recognition of Handwritten Digits, test part, CC BY 4.0",
)
