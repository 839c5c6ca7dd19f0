"""Protocols: what turns a model, a data set and an attack into a number."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from robustbench_vlm.attacks.stage import Attack, Stage
from robustbench_vlm.datasets.dataset import Dataset
from robustbench_vlm.registry import Registry


@dataclass(frozen=True)
class Protocol:
    """How a track measures. Every field is part of the fingerprint of every number."""

    name: str
    version: int
    samples: int | None
    """Samples a data set, stratified and chosen by the hash of the sample id; None takes all."""
    seed: int = 0
    side: int | None = None
    """Height and width at which pictures are attacked; None is each data set's own. Models resize inside."""
    precision: str = "float32"
    keep: str = "best"
    """Which iterate of PGD counts: "best" or "final"."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompts that replace the data sets' own, by data set."""
    description: str = ""

    @property
    def label(self) -> str:
        """Name and version, as tables show them."""
        return f"{self.name}/{self.version}"

    def with_samples(self, samples: int | None) -> "Protocol":
        """Return the protocol with another number of samples a set (None: all of them), and a name that says so."""
        if samples == self.samples:
            return self
        return dataclasses.replace(self, name=f"{self.name}-{samples or 'all'}", samples=samples)

    def adapt_dataset(self, dataset: Dataset) -> Dataset:
        """Return the data set with the protocol's prompt."""
        return dataclasses.replace(dataset, prompt=self.prompts.get(dataset.name, dataset.prompt))

    def adapt_attack(self, attack: Attack) -> Attack:
        """Return the attack with the iterate that the protocol counts, in the stages that have the choice."""
        return dataclasses.replace(attack, stages=tuple(self._adapt_stage(stage) for stage in attack.stages))

    def _adapt_stage(self, stage: Stage) -> Stage:
        if "keep" not in stage.parameters:
            return stage
        return dataclasses.replace(stage, parameters={**stage.parameters, "keep": self.keep})

    def select(self, ids: Sequence[str], labels: Sequence[int]) -> list[int]:
        """Return the indices of the protocol's samples, in their fixed order.

        Classes take turns, each giving its samples in the order of their ids' hashes, so that a smaller selection is
        the beginning of a larger one.
        """
        by_class: dict[int, list[int]] = {}
        for index in sorted(range(len(ids)), key=lambda index: _hash(ids[index])):
            by_class.setdefault(labels[index], []).append(index)
        turns = [
            (turn, _hash(f"class {label}"), index)
            for label, members in by_class.items()
            for turn, index in enumerate(members)
        ]
        return [index for _, _, index in sorted(turns)][: self.samples]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MINI = Protocol(
    name="mini",
    version=1,
    samples=200,
    description="the whole embedded protocol: 200 samples a set, float32, worst case over stages",
)
MINI_QUICK = Protocol(
    name="mini-quick",
    version=1,
    samples=8,
    description="the first 8 of mini's samples a set: a table within two minutes, with wide intervals",
)

ZEROSHOT15 = Protocol(
    name="zeroshot15",
    version=1,
    samples=1000,
    description="1000 samples a set, float32, worst case over stages",
)

PROTOCOLS = Registry(
    "protocol",
    {
        "mini": "robustbench_vlm.protocols:MINI",
        "mini-quick": "robustbench_vlm.protocols:MINI_QUICK",
        "zeroshot15": "robustbench_vlm.protocols:ZEROSHOT15",
    },
)
