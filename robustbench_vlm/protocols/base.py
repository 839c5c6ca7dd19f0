"""Protocols: the settings of an evaluation, such as samples, prompts, image size and precision."""

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
"""Metadata of a field that was added after the first results. If such a field has its default value, the identity
leaves it out, so that the fingerprints of old results stay valid."""


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation. All fields except `description` are part of the fingerprint of each result."""

    name: str
    version: int
    samples: int | None
    """Number of samples per dataset, taken from the start of its standard order; None takes all samples."""
    seed: int = 0
    image_size: int | None = None
    """Height and width in pixels to which the images of --images are resized; None takes the model's input size."""
    precision: str = "float32"
    """Precision of the image encoder during the attack: "float32", "bfloat16" or "float16". Losses are float32."""
    iterate: str = "best"
    """The iterate that PGD returns: "final", or "best" (the first misclassified one, else the one of highest loss)."""
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Maps the name of a dataset to the prompt that replaces the dataset's own prompt."""
    verdict_precision: str = field(default="float32", metadata=LATER)
    """Precision of the image encoder when the benchmark classifies the clean and the adversarial images."""
    datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """Names of the datasets in the published table; () takes the datasets of the track."""
    missing_datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """Datasets of the published table that this package cannot run. They prevent a comparison with the table's mean."""
    logit_precision: str = field(default="float32", metadata=LATER)
    """Precision of the product of image and text features. Published code that runs in half precision has "float16"."""
    prompt_source: str = field(default="", metadata=LATER)
    """Name of the prompt source of published datasets, see `datasets.prompts`; "" keeps each dataset's own prompts."""
    transform: Transform | None = field(default=None, metadata=LATER)
    """Converts images of published datasets to the pixels that are attacked; None keeps each dataset's transform."""
    small_transform: Transform | None = field(default=None, metadata=LATER)
    """Replaces `transform` for published datasets whose images all have one small size (CIFAR and STL10)."""
    attacks: Mapping[str, str] = field(default_factory=dict, metadata=LATER)
    """Maps the name of an attack to the attack that this protocol runs in its place, such as a reduced AutoAttack."""
    step_size: str = field(default="", metadata=LATER)
    """Step size of PGD and CW under Linf for pixels in [0, 1], such as "1/255"; "" keeps each attack's step size."""
    mean_over: int = field(default=1, metadata=LATER)
    """If above 1, PGD maximises the mean cross-entropy over this many samples, as published code does.

    The mean makes each sample's gradient smaller, so small gradients become 0 in half precision.
    """
    description: str = ""
    """The protocol in one sentence, for lists and pages."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that a result depends on, as JSON types."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if _counts(self, each)}
        found: dict[str, Any] = plain(values)
        return found

    @property
    def label(self) -> str:
        """Name and version, as tables show them."""
        return f"{self.name}/{self.version}"

    def with_samples(self, samples: int | None) -> "Protocol":
        """Return a copy, with a new name, that has another number of samples per dataset (None: all)."""
        if samples == self.samples:
            return self
        return dataclasses.replace(self, name=f"{self.name}-{samples or 'all'}", samples=samples)

    def adapt_dataset(self, dataset: Dataset) -> Dataset:
        """Return the dataset with the protocol's prompt, class names and transform.

        Raises UserError if the protocol's prompt source lacks prompts for the published dataset.
        """
        if dataset.published and self.prompt_source:
            dataset = with_prompts(dataset, self.prompt_source)
        transform = self.small_transform if has_native_size(dataset) else self.transform
        if dataset.published and transform:
            dataset = dataclasses.replace(dataset, transform=transform)
        return dataclasses.replace(dataset, prompt=self.prompts.get(dataset.name, dataset.prompt))

    def attack_name(self, name: str) -> str:
        """Return the name of the attack that this protocol runs when a user asks for the attack `name`."""
        return self.attacks.get(name, name)

    def adapt_attack(self, attack: Attack, norm: str = "Linf") -> Attack:
        """Return the attack with the protocol's iterate, step size and loss, in the stages that accept them.

        The step size applies to Linf only. It is the change of each pixel in a step. As the L2 length of a step it
        would be too small.
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
        """Return the indices of the protocol's samples: the first ones of the standard order."""
        return standard_order(ids, labels)[: self.samples]


def _counts(protocol: Protocol, each: dataclasses.Field[Any]) -> bool:
    """Return whether a field is part of the protocol's identity."""
    if each.metadata != LATER:
        return each.name != "description"
    default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
    return bool(getattr(protocol, each.name) != default)
