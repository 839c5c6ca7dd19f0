"""Cells and shards: the identity of one accuracy, its samples, and the pieces in which it is computed."""

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
from robustbench_vlm.protocols.base import Protocol

_AT_ONCE = 256
"""Images held in memory while their digests are computed."""


@dataclass(frozen=True)
class Samples:
    """The samples of a cell in their fixed order, each with the digest of its pixels."""

    indices: tuple[int, ...]
    """Positions in the dataset's source."""
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    image_digests: tuple[str, ...]
    """sha256 of each image's uint8 pixels."""
    unreadable: tuple[str, ...] = ()
    """Ids of chosen images that cannot be decoded; they are not part of the cell."""

    @functools.cached_property
    def digest(self) -> str:
        """The data digest: sha256 over (id, label, image sha256) of every sample."""
        return fingerprint(list(zip(self.ids, self.labels, self.image_digests, strict=True)))


@dataclass(frozen=True)
class Cell:
    """One model x attack x dataset x threat under one protocol: one accuracy of the table."""

    track: str
    model: str
    """The reference that loads the model: a name, a card file, or open_clip:ARCH/TAG."""
    model_name: str
    weights: str
    """The digest of architecture and weights."""
    dataset: Dataset
    """With the protocol's prompt."""
    attack: Attack
    """With the protocol's choices."""
    threat: Threat
    protocol: Protocol
    samples: Samples

    def __len__(self) -> int:
        return len(self.samples.ids)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that the accuracy depends on, and nothing else; the fingerprint is computed from it.

        Batch size, device, engine, library versions and descriptions are not part of it.
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
        """sha256 of the identity, 64 hexadecimal digits."""
        return fingerprint(self.identity)

    @property
    def label(self) -> str:
        """The name of the cell in messages."""
        return f"{self.model_name} / {self.attack.name} / {self.dataset.name} / {self.threat}"


@dataclass(frozen=True)
class Shard:
    """The samples start to stop (exclusive) of one cell."""

    cell: int
    """Index of the cell in the plan."""
    start: int
    stop: int
    fingerprint: str
    """Fingerprint of the cell in the plan; the worker computes it again and refuses a shard with another one."""

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"samples {self.start} to {self.stop} of cell {self.cell}"


def choose_samples(dataset: Dataset, protocol: Protocol, *, skip_unreadable: bool) -> Samples:
    """Return the samples of a dataset that the protocol chooses, with the digest of every image.

    Unreadable images are left out if `skip_unreadable`, else UnreadableImage is raised. Raises UserError if no image
    is left, if ids are not unique, and if a label is not a class.
    """
    source = dataset.open()
    _check(dataset, source)
    chosen = _chosen(source, protocol)
    digests: list[str | None] = []
    for start in range(0, len(chosen), _AT_ONCE):
        digests += _digests(source, chosen[start : start + _AT_ONCE], skip_unreadable)
    kept = [(index, digest) for index, digest in zip(chosen, digests, strict=True) if digest is not None]
    if not kept:
        raise UserError(f"the dataset {dataset.name!r} has no readable image: give another folder or dataset")
    indices = tuple(index for index, _ in kept)
    return Samples(
        indices=indices,
        ids=tuple(source.ids[index] for index in indices),
        labels=tuple(int(source.labels[index]) for index in indices),
        image_digests=tuple(digest for _, digest in kept),
        unreadable=tuple(source.ids[i] for i, digest in zip(chosen, digests, strict=True) if digest is None),
    )


def _chosen(source: Source, protocol: Protocol) -> list[int]:
    """Return the indices of the protocol's samples; prepared datasets are already in the standard order."""
    if isinstance(source, PreparedSource):
        return list(range(len(source.ids)))[: protocol.samples]
    return protocol.select(source.ids, source.labels)


def _check(dataset: Dataset, source: Source) -> None:
    if len(set(source.ids)) != len(source.ids):
        raise UserError(
            f"the dataset {dataset.name!r} gives one id to several samples: give each sample of its source its own id"
        )
    wrong = sorted({label for label in source.labels if not 0 <= label < len(dataset.classes)})
    if wrong:
        raise UserError(
            f"the dataset {dataset.name!r} has the label {wrong[0]}, but {len(dataset.classes)} classes:"
            f" labels lie between 0 and {len(dataset.classes) - 1}"
        )


def _digests(source: Source, indices: Sequence[int], skip_unreadable: bool) -> list[str | None]:
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
