"""The hub's builds of the datasets: tar shards of images and labels, read in place (LAION's clip-benchmark)."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.published.base import MissingData, stamp_of
from robustbench_vlm.datasets.published.class_lists import Labels, hub_class_names
from robustbench_vlm.datasets.published.image_files import check_unique, decode, read_lines, reading

if TYPE_CHECKING:
    from PIL.Image import Image

_Value = TypeVar("_Value")

_IMAGE_SUFFIXES = ("webp", "png", "jpg", "jpeg")


@dataclass(frozen=True)
class TarMember:
    """Where an image lies: a shard, and a range of its bytes."""

    shard: Path
    name: str
    start: int
    size: int


@dataclass(frozen=True)
class TarShardImages:
    """Images inside of tar files, which are never unpacked; a sample's name is "wds/" and its key."""

    ids: Sequence[str]
    labels: Sequence[int]
    members: Sequence[TarMember]

    def image(self, index: int) -> "Image":
        """Return an image as stored."""
        member = self.members[index]
        with member.shard.open("rb") as file:
            file.seek(member.start)
            return decode(io.BytesIO(file.read(member.size)), f"{member.name} of {member.shard}")

    def stamp(self, index: int) -> str:
        """Return that of the image's shard."""
        return stamp_of(self.members[index].shard)


def read_shards(root: Path, name: str) -> TarShardImages:
    """Read the test part of a dataset's build: "test/nshards.txt", "test/0.tar" on, "classnames.txt".

    Raises MissingData where a shard is absent, UserError where one is cut off or holds no such dataset.
    """
    places = _places(root / "classnames.txt", name)
    counter = root / "test" / "nshards.txt"
    with reading(counter):
        count = int(counter.read_text(encoding="utf-8"))
    found = [sample for number in range(count) for sample in _samples(root / "test" / f"{number}.tar")]
    kept = [(key, places[label], member) for key, label, member in found if _is_kept(places, label, root)]
    if not kept:
        raise MissingData(f"the shards of {root / 'test'} hold no samples")
    ids = check_unique([f"wds/{key}" for key, _, _ in kept], root)
    return TarShardImages(ids, tuple(label for _, label, _ in kept), tuple(member for *_, member in kept))


def _is_kept(places: Sequence[int], label: int, root: Path) -> bool:
    if not 0 <= label < len(places):
        raise UserError(f"the shards of {root} have the label {label}, and the dataset {len(places)} classes")
    return places[label] >= 0


def _places(path: Path, name: str) -> list[int]:
    """Return the class of each of the shards' labels, -1 for one that is left out.

    Most builds write the dataset's own names into "classnames.txt", others better ones: then their order decides.
    """
    labels, order = Labels(name), hub_class_names(name)
    written = read_lines(path) if path.exists() else list(order)
    if len(written) != len(order):
        raise UserError(f"{path} has {len(written)} classes, and {name} has {len(order)}: fetch the dataset anew")
    places = [
        labels.of(line if line in labels else raw, path) if raw else -1
        for line, raw in zip(written, order, strict=True)
    ]
    if sorted(place for place in places if place >= 0) != list(range(len(labels))):
        raise UserError(f"{path} has another order of the classes of {name} than is known: fetch the dataset anew")
    return places


def _samples(shard: Path) -> Iterator[tuple[str, int, TarMember]]:
    """Yield key, label and place of each sample of a shard, in the shard's order."""
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
            raise ValueError(f"{len(odd)} samples have no image or no label, as {odd[0]}")
    yield from ((key, labels[key], member) for key, member in images.items())


def _put(values: dict[str, _Value], key: str, value: _Value) -> None:
    if key in values:
        raise ValueError(f"the sample {key} has two images or two labels")
    values[key] = value


def _check_end(shard: Path) -> None:
    """Raise ValueError for a tar file that was cut off between two members, which tarfile takes for its end."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 1024))
        if size < 1024 or any(file.read()):
            raise ValueError("it is cut off: a tar file ends with 1024 zeros")
