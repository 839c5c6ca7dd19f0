"""Cells and shards: the identity of one number, and the pieces in which it is computed."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.protocols.base import Protocol


@dataclass(frozen=True)
class Samples:
    """The samples of a cell in their fixed order, each with the digest of its pixels."""

    indices: tuple[int, ...]
    """Where they stand in the dataset's source."""
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    image_digests: tuple[str, ...]
    """sha256 of each image's uint8 pixels."""
    unreadable: tuple[str, ...] = ()
    """Ids that the protocol chose but nobody can decode; they are no part of the cell."""

    @functools.cached_property
    def digest(self) -> str:
        """The data digest: sha256 over (id, label, image sha256) of every sample."""
        return fingerprint(list(zip(self.ids, self.labels, self.image_digests, strict=True)))


@dataclass(frozen=True)
class Cell:
    """One model x attack x dataset x threat under one protocol: one number of the table."""

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
        """Everything that the number depends on, and nothing else: what the fingerprint is taken of.

        Batch size, device, engine, library versions, and texts that only describe stay out.
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
        """What a person calls this cell."""
        return f"{self.model_name} / {self.attack.name} / {self.dataset.name} / {self.threat}"


@dataclass(frozen=True)
class Shard:
    """The samples start to stop (exclusive) of the cell that has this number in the plan."""

    cell: int
    start: int
    stop: int
    fingerprint: str
    """That of the cell, as the plan has it; who runs the shard computes it again and refuses where it differs."""

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"samples {self.start} to {self.stop} of cell {self.cell}"
