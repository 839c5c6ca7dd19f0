"""Readers of datasets with all pixels in one file: CIFAR (pickled batches), STL-10 (binary), PCAM (HDF5)."""

import pickle
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import UnreadableImage
from robustbench_vlm.datasets.published.base import StoredImages, stamp_of
from robustbench_vlm.datasets.published.class_lists import Labels
from robustbench_vlm.datasets.published.image_files import read_lines, reading

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image


@dataclass(frozen=True)
class ArrayImages:
    """The images of a dataset in one array. The id of a sample is its index, written with five digits."""

    ids: Sequence[str]
    labels: Sequence[int]
    """The class index of each of the N images."""
    pixels: "ndarray[Any, Any]"
    """The pixels of the N images, uint8 [N, H, W, 3]."""
    file: Path
    """The file that contains the pixels."""

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the file with all pixels, as one text."""
        return stamp_of(self.file)

    def image(self, index: int) -> "Image":
        """Return an image in its stored size."""
        import numpy
        from PIL import Image

        return Image.fromarray(numpy.ascontiguousarray(self.pixels[index]))


def cifar10(root: Path) -> StoredImages:
    """Read the test split of CIFAR-10 from "test_batch", and its class names from "batches.meta"."""
    return _cifar(root, "cifar10", "test_batch", "labels", "batches.meta", "label_names")


def cifar100(root: Path) -> StoredImages:
    """Read the test split of CIFAR-100 with its fine labels from "test", and its class names from "meta"."""
    return _cifar(root, "cifar100", "test", "fine_labels", "meta", "fine_label_names")


def _cifar(root: Path, name: str, batch: str, key: str, meta: str, names: str) -> ArrayImages:
    places = Labels(name).of_numbers(_unpickled(root / meta, names)[names], root / meta)
    entry = _unpickled(root / batch, "data", key)
    with reading(root / batch):
        pixels = entry["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = _placed(places, entry[key])
    return ArrayImages(_numbered(labels, root / batch, pixels, root / batch), labels, pixels, root / batch)


def _placed(places: Sequence[int], numbers: Any) -> tuple[int, ...]:
    """Convert the labels `numbers` of a file to class indices. `places[label]` is the class index of a label."""
    numbers = [int(number) for number in numbers]
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(places):
        raise ValueError(f"the file has labels from {min(numbers)} to {max(numbers)}, expected 0 to {len(places) - 1}")
    return tuple(places[number] for number in numbers)


def _numbered(labels: Sequence[int], targets: Path, pixels: Sized, path: Path) -> tuple[str, ...]:
    """Return the samples' indices as ids. Raises UserError if there are more or fewer images than labels."""
    if len(pixels) != len(labels):
        raise UserError(
            f"{path} has {len(pixels)} images and {targets} has {len(labels)} labels, expected equal numbers: fetch"
            " both files again"
        )
    return tuple(f"{place:05d}" for place in range(len(labels)))


class _Unpickler(pickle.Unpickler):
    """Unpickle numbers, texts, lists and NumPy arrays, also those that Python 2 wrote. No code from the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        import codecs

        import numpy

        def empty(kind: type, shape: tuple[int, ...], code: str) -> Any:
            return numpy.ndarray(shape, code)

        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): empty,
            ("numpy._core.multiarray", "_reconstruct"): empty,
            ("numpy", "ndarray"): numpy.ndarray,
            ("numpy", "dtype"): numpy.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"the file uses {module}.{name}, which is not allowed in a dataset file")
        return allowed[module, name]


def _unpickled(path: Path, *keys: str) -> dict[str, Any]:
    with reading(path), path.open("rb") as file:
        # The official files have byte strings of Python 2. latin1 maps each byte to one character.
        entry: dict[str, Any] = _Unpickler(file, encoding="latin1").load()
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f"the file has no key {' and no key '.join(missing)}")
    return entry


def stl10(root: Path) -> StoredImages:
    """Read the test split of STL-10 from "test_X.bin" (images) and "test_y.bin" (labels).

    The pixels of an image are stored column by column. The first class has the label 1.
    """
    import numpy

    places = Labels("stl10").of_numbers(read_lines(root / "class_names.txt"), root / "class_names.txt")
    with reading(root / "test_y.bin"):
        labels = _placed(places, numpy.fromfile(root / "test_y.bin", numpy.uint8).astype(int) - 1)
    with reading(root / "test_X.bin"):
        pixels = numpy.memmap(root / "test_X.bin", numpy.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    ids = _numbered(labels, root / "test_y.bin", pixels, root / "test_X.bin")
    return ArrayImages(ids, labels, pixels, root / "test_X.bin")


@dataclass(frozen=True)
class Hdf5Images:
    """The images of an HDF5 file, read one at a time. The id of a sample is its index, written with five digits."""

    ids: Sequence[str]
    labels: Sequence[int]
    """The class index of each of the N images."""
    path: Path

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the file with all pixels, as one text."""
        return stamp_of(self.path)

    def image(self, index: int) -> "Image":
        """Return an image in its stored size. Raises UnreadableImage if its part of the file is damaged."""
        import h5py
        from PIL import Image

        try:
            with h5py.File(self.path) as file:
                return Image.fromarray(file["x"][index])
        except OSError as error:
            raise UnreadableImage(f"cannot read the image {index} of {self.path}: {error}") from error


def pcam(root: Path) -> StoredImages:
    """Read the test split of PatchCamelyon from "..._test_x.h5" ("x": uint8 [N, 96, 96, 3]) and "..._test_y.h5"."""
    import h5py

    pixels, targets = (root / f"camelyonpatch_level_2_split_test_{part}.h5" for part in "xy")
    with reading(targets), h5py.File(targets) as file:
        labels = _placed(range(2), file["y"][:].reshape(-1))
    with reading(pixels), h5py.File(pixels) as file:
        ids = _numbered(labels, targets, file["x"], pixels)
    return Hdf5Images(ids, labels, pixels)
