"""Cells, their samples and their shards. A cell is one model, attack, dataset and eps. A shard is a part of a cell."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.base import Dataset, Source, UnreadableImage, image_sha256
from robustbench_vlm.datasets.prepared import PreparedSource
from robustbench_vlm.models import CONTEXT_LENGTH
from robustbench_vlm.protocols.base import Protocol

_AT_ONCE = 256
"""Number of images that are loaded into memory together to compute their digests."""


@dataclass(frozen=True)
class Samples:
    """The samples of a cell, in a fixed order, with a digest of the pixels of each sample."""

    indices: tuple[int, ...]
    """Index of each sample in the dataset's source."""
    ids: tuple[str, ...]
    """Id of each sample."""
    labels: tuple[int, ...]
    """Class index of each sample."""
    image_digests: tuple[str, ...]
    """sha256 of each image's uint8 pixels, in hexadecimal digits."""
    unreadable: tuple[str, ...] = ()
    """Ids of images that cannot be decoded. They are not part of the cell."""

    @functools.cached_property
    def digest(self) -> str:
        """The data digest: a sha256 over the ids, labels and image digests of all samples."""
        return fingerprint(list(zip(self.ids, self.labels, self.image_digests, strict=True)))


@dataclass(frozen=True)
class Cell:
    """One combination of model, attack, dataset and threat under one protocol.

    A cell gives one clean and one robust accuracy.
    """

    track: str
    model: str
    """Reference of the model, such as a name, a card file, or open_clip:ARCH/TAG."""
    model_name: str
    weights: str
    """Digest of the model's architecture and weights."""
    dataset: Dataset
    """The dataset with the prompt template of the protocol."""
    attack: Attack
    """The attack with the settings of the protocol."""
    threat: Threat
    protocol: Protocol
    samples: Samples
    context_length: int = CONTEXT_LENGTH
    """Largest number of tokens that the model's text encoder reads. If a prompt is longer, the rest of it is ignored.
    """

    def __len__(self) -> int:
        return len(self.samples.ids)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The values that determine the accuracy. The fingerprint is computed from them.

        Batch size, device, engine, library versions and descriptions are not included.
        """
        return {
            "weights": self.weights,
            "dataset": self.dataset.name,
            "classes": self.dataset.classes,
            "prompts": self.dataset.prompts,
            "data": self.samples.digest,
            "samples": self.samples.ids,
            "attack": {"name": self.attack.name, "stages": [stage.identity for stage in self.attack.stages]},
            "threat": plain(self.threat),
            "protocol": self.protocol.identity,
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the identity, as 64 hexadecimal digits."""
        return fingerprint(self.identity)

    @functools.cached_property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the attacked images in pixels. The first image is read."""
        height, width = self.dataset.open().read(self.samples.indices[:1]).shape[-2:]
        return height, width

    @property
    def label(self) -> str:
        """Description of the cell in messages."""
        return f"{self.model_name} / {self.attack.name} / {self.dataset.name} / {self.threat}"


@dataclass(frozen=True)
class Shard:
    """A range of samples of one cell, from `start` to `stop` (exclusive)."""

    cell: int
    """Index of the cell in the plan."""
    start: int
    stop: int
    fingerprint: str
    """Fingerprint of the cell in the plan. The worker computes the fingerprint too, and raises UserError if the two
    differ.
    """

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"samples {self.start} to {self.stop} of cell {self.cell}"


def choose_samples(dataset: Dataset, protocol: Protocol, *, skip_unreadable: bool) -> Samples:
    """Return the samples of a dataset that the protocol chooses, with the digest of every image.

    If `skip_unreadable` is true, images that cannot be decoded are left out. If it is false, such an image raises
    UnreadableImage. Raises UserError if no readable image remains, if two samples have equal ids, or if a label is not
    a class index.
    """
    source = dataset.open()
    _check(dataset, source)
    chosen = _chosen(source, protocol)
    digests: list[str | None] = []
    for start in range(0, len(chosen), _AT_ONCE):
        digests += _digests(source, chosen[start : start + _AT_ONCE], skip_unreadable)
    kept = [(index, digest) for index, digest in zip(chosen, digests, strict=True) if digest is not None]
    if not kept:
        raise UserError(f"no image of the dataset {dataset.name!r} can be read: give another folder or dataset")
    indices = tuple(index for index, _ in kept)
    return Samples(
        indices=indices,
        ids=tuple(source.ids[index] for index in indices),
        labels=tuple(int(source.labels[index]) for index in indices),
        image_digests=tuple(digest for _, digest in kept),
        unreadable=tuple(source.ids[i] for i, digest in zip(chosen, digests, strict=True) if digest is None),
    )


def _chosen(source: Source, protocol: Protocol) -> list[int]:
    """Return the indices of the samples that the protocol chooses.

    Prepared datasets are already in the standard order, so their first samples are chosen.
    """
    if isinstance(source, PreparedSource):
        return list(range(len(source.ids)))[: protocol.samples]
    return protocol.select(source.ids, source.labels)


def _check(dataset: Dataset, source: Source) -> None:
    """Raise UserError if ids are not unique or a label is not a class index."""
    if len(set(source.ids)) != len(source.ids):
        raise UserError(
            f"the dataset {dataset.name!r} has several samples with the same id: every id of its source must be unique"
        )
    wrong = sorted({label for label in source.labels if not 0 <= label < len(dataset.classes)})
    if wrong:
        raise UserError(
            f"the dataset {dataset.name!r} has the label {wrong[0]}, but labels must be from 0 to"
            f" {len(dataset.classes) - 1}, because it has {len(dataset.classes)} classes: correct the labels"
        )


def _digests(source: Source, indices: Sequence[int], skip_unreadable: bool) -> list[str | None]:
    """Return the digest of each image, or None for an unreadable image if `skip_unreadable` is true."""
    if isinstance(source, PreparedSource):
        known = source.digests(indices)
        if not all(known) and not skip_unreadable:
            source.read([indices[known.index("")]])
        return [digest or None for digest in known]
    try:
        return [image_sha256(image) for image in source.read(indices)]
    except UnreadableImage:
        if not skip_unreadable:
            raise
    digests: list[str | None] = []
    for index in indices:
        try:
            digests.append(image_sha256(source.read([index])[0]))
        except UnreadableImage:
            digests.append(None)
    return digests
