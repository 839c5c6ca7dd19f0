"""Read datasets from LAION's clip-benchmark tar files (shards) on the Hugging Face Hub without unpacking the files."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.published.base import MissingData, stamp_of
from robustbench_vlm.datasets.published.class_lists import Labels, hub_class_names, normalised
from robustbench_vlm.datasets.published.image_files import check_unique, decode, read_lines, reading

if TYPE_CHECKING:
    from PIL.Image import Image

_Value = TypeVar("_Value")

CLASS_NAMES = "classnames.txt"
"""Name of the file that lists one class name per line. The line number, from 0, is the label in the shards."""
_IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")


@dataclass(frozen=True)
class TarMember:
    """The position of an image file in a tar shard."""

    shard: Path
    name: str
    """Name of the image file in the shard."""
    start: int
    """Offset of the file's first byte."""
    size: int
    """Number of bytes of the file."""


@dataclass(frozen=True)
class TarShardImages:
    """N images in tar files (shards). The id of a sample is "wds/", followed by the sample's key in its shard."""

    ids: Sequence[str]
    labels: Sequence[int]
    """The class index of each of the N images."""
    members: Sequence[TarMember]

    def image(self, index: int) -> "Image":
        """Return an image in its stored mode and size; raise UnreadableImage if it cannot be decoded."""
        member = self.members[index]
        with member.shard.open("rb") as file:
            file.seek(member.start)
            return decode(io.BytesIO(file.read(member.size)), f"{member.name} of {member.shard}")

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the tar file that contains the image, as one text."""
        return stamp_of(self.members[index].shard)


def read_shards(root: Path, name: str) -> TarShardImages:
    """Read the test split of a dataset from "test/0.tar", "test/1.tar", ... and "classnames.txt".

    "test/nshards.txt" has the number of shards. Raises MissingData if a shard is missing, and UserError if a shard is
    truncated or belongs to another dataset.
    """
    places = _places(root / CLASS_NAMES, name)
    counter = root / "test" / "nshards.txt"
    with reading(counter):
        count = int(counter.read_text(encoding="utf-8"))
    found = [sample for number in range(count) for sample in _samples(root / "test" / f"{number}.tar")]
    kept = [(key, places[label], member) for key, label, member in found if _is_kept(places, label, root)]
    if not kept:
        raise MissingData(f"the shards in {root / 'test'} have no samples")
    ids = check_unique([f"wds/{key}" for key, _, _ in kept], root)
    return TarShardImages(ids, tuple(label for _, label, _ in kept), tuple(member for *_, member in kept))


def check_class_order(path: Path, name: str) -> None:
    """Raise UserError if "classnames.txt" lists the classes of a dataset in another order than `hub_class_names`.

    Some files list readable names instead of raw class names. The order of readable names cannot be checked, so it is
    taken to be that of `hub_class_names`.
    """
    order, labels = hub_class_names(name), Labels(name)
    _places(path, name)
    for number, (line, raw) in enumerate(zip(read_lines(path), order, strict=True)):
        if line in labels and normalised(line) != normalised(raw):
            raise UserError(
                f"{path.name} has the class {line!r} at the label {number}, expected {raw or 'the background'!r}; the"
                " labels may have another meaning"
            )


def _is_kept(places: Sequence[int], label: int, root: Path) -> bool:
    if not 0 <= label < len(places):
        raise UserError(
            f"the shards in {root} have the label {label}, expected labels from 0 to {len(places) - 1}: fetch the"
            " dataset again"
        )
    return places[label] >= 0


def _places(path: Path, name: str) -> list[int]:
    """Return the class index for each label of the shards. The index is -1 if the class is not used.

    In most repositories, "classnames.txt" lists the raw class names of the dataset. In other repositories, it lists
    readable names. A readable name belongs to the class at the same position in `hub_class_names`.
    """
    labels, order = Labels(name), hub_class_names(name)
    written = read_lines(path) if path.exists() else list(order)
    if len(written) != len(order):
        raise UserError(
            f"{path} has {len(written)} classes, expected the {len(order)} classes of {name}: fetch the dataset again"
        )
    places = [
        labels.of(line if line in labels else raw, path) if raw else -1
        for line, raw in zip(written, order, strict=True)
    ]
    if sorted(place for place in places if place >= 0) != list(range(len(labels))):
        raise UserError(
            f"{path} lists the classes of {name} in an unknown order, so labels cannot be matched: fetch the dataset"
            " again"
        )
    return places


def _samples(shard: Path) -> Iterator[tuple[str, int, TarMember]]:
    """Yield the key, label and position of each sample of a shard, in the shard's order."""
    images: dict[str, TarMember] = {}
    labels: dict[str, int] = {}
    with reading(shard):
        _check_end(shard)
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                key, _, suffix = entry.name.rpartition("/")[2].partition(".")
                if not entry.isreg():
                    continue
                if suffix.lower() in _IMAGE_SUFFIXES:
                    _put(images, key, TarMember(shard, entry.name, entry.offset_data, entry.size))
                elif suffix == "cls" and (label := archive.extractfile(entry)):
                    _put(labels, key, int(label.read()))
        if images.keys() != labels.keys():
            odd = sorted(images.keys() ^ labels.keys())
            raise ValueError(f"{len(odd)} samples lack an image or a label, for example {odd[0]}")
    yield from ((key, labels[key], member) for key, member in images.items())


def _put(values: dict[str, _Value], key: str, value: _Value) -> None:
    if key in values:
        raise ValueError(f"the sample {key} has two images or two labels")
    values[key] = value


def _check_end(shard: Path) -> None:
    """Raise ValueError if a tar file is truncated between two members. tarfile does not detect this."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if size < 1024 or any(file.read()):
            raise ValueError("the file is truncated: a complete tar file ends with 1024 zero bytes")
