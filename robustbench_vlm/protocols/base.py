"""What a protocol is: what turns a model, a dataset and an attack into a number."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.datasets.base import Dataset, Prompt
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.published.zero_shot import has_native_size, with_prompts
from robustbench_vlm.datasets.transform import Transform

LATER = {"later": True}
"""Metadata of a field that came after the first numbers: at its default it is no part of an identity."""


@dataclass(frozen=True)
class Protocol:
    """How a track measures. Every field but the description is part of the fingerprint of every number."""

    name: str
    version: int
    samples: int | None
    """Samples a dataset, stratified and chosen by the hash of the sample id; None takes all."""
    seed: int = 0
    image_size: int | None = None
    """Height and width at which images are attacked; None is each dataset's own. Models resize inside."""
    precision: str = "float32"
    """In which the image encoder is attacked; losses are float32 always."""
    iterate: str = "best"
    """Which iterate of PGD counts: "best" or "final"."""
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Prompts that replace the datasets' own, by dataset."""
    verdict_precision: str = field(default="float32", metadata=LATER)
    """The precision of the image encoder where the harness itself classifies, clean and attacked images alike."""
    datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """The datasets of its published table, in place of the track's."""
    missing_datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """Those of its published table that nobody can run here, so that there is no mean as published."""
    logit_precision: str = field(default="float32", metadata=LATER)
    """In which the products with the texts are made, attacked or judged: in half where published code runs in it."""
    prompt_source: str = field(default="", metadata=LATER)
    """Name of the prompt source of published datasets, see `datasets.prompts`; "" keeps each dataset's own prompts."""
    transform: Transform | None = field(default=None, metadata=LATER)
    """How images of published datasets become the pixels that are attacked; None leaves each its own."""
    small_transform: Transform | None = field(default=None, metadata=LATER)
    """The same for datasets whose images are small and all of one size."""
    attacks: Mapping[str, str] = field(default_factory=dict, metadata=LATER)
    """Attacks that stand for others of the same purpose here, as a reduced AutoAttack for "autoattack"."""
    step_size: str = field(default="", metadata=LATER)
    """The step of PGD and CW under Linf as a fraction of the pixel range; "" leaves each attack its own."""
    mean_over: int = field(default=1, metadata=LATER)
    """PGD takes the softmax's cross-entropy as a mean over so many samples: half precision loses gradients by it."""
    description: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What a number depends on, in JSON's own types."""
        said = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if _counts(self, each)}
        found: dict[str, Any] = plain(said)
        return found

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
        """Return the dataset with the protocol's prompt, class names and transform.

        Raises UserError for a published dataset that the protocol's prompt source does not have.
        """
        if dataset.published and self.prompt_source:
            dataset = with_prompts(dataset, self.prompt_source)
        transform = self.small_transform if has_native_size(dataset) else self.transform
        if dataset.published and transform:
            dataset = dataclasses.replace(dataset, transform=transform)
        return dataclasses.replace(dataset, prompt=self.prompts.get(dataset.name, dataset.prompt))

    def attack_name(self, name: str) -> str:
        """Return the name of the attack that stands for `name` here."""
        return self.attacks.get(name, name)

    def adapt_attack(self, attack: Attack, norm: str = "Linf") -> Attack:
        """Return the attack with the protocol's iterate, step and reduction, in the stages that have the choice.

        The step is one of each pixel: in L2, where it would move an image by next to nothing, stages keep their own.
        """
        return dataclasses.replace(attack, stages=tuple(self._adapt_stage(stage, norm) for stage in attack.stages))

    def _adapt_stage(self, stage: Stage, norm: str) -> Stage:
        parameters = dict(stage.parameters)
        if "iterate" in stage.adjustable:
            parameters |= {"iterate": self.iterate}
        if self.step_size and norm == "Linf" and "step_size" in stage.adjustable:
            parameters |= {"step_size": self.step_size}
            parameters.pop("relative_step", None)
        if self.mean_over > 1 and "mean_over" in stage.adjustable:
            parameters |= {"mean_over": self.mean_over, "loss": "softmax-ce"}
        return dataclasses.replace(stage, parameters=parameters)

    def select(self, ids: Sequence[str], labels: Sequence[int]) -> list[int]:
        """Return the indices of the protocol's samples: the beginning of the standard order."""
        return standard_order(ids, labels)[: self.samples]


def _counts(protocol: Protocol, each: dataclasses.Field[Any]) -> bool:
    if each.metadata != LATER:
        return each.name != "description"
    default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
    return bool(getattr(protocol, each.name) != default)
