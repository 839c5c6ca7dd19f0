"""Protocols: the settings of an evaluation, such as samples, prompts, image size and precision."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import LATER, counted, plain
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.datasets.base import Dataset, Prompt
from robustbench_vlm.datasets.order import standard_order
from robustbench_vlm.datasets.published.zero_shot import has_native_size, with_prompts
from robustbench_vlm.datasets.transform import Transform

RESOLUTIONS = ("protocol", "native")
"""The values of `Protocol.resolution`."""
DEFAULT_EOT = 20
"""The number of draws of which AutoAttack's version "rand" takes the mean gradient (arXiv:2003.01690)."""
SMALL_INPUT = 100
"""A model whose input has fewer pixels per side than this number is evaluated at the radii `small_eps`."""


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation. All fields except `description` are part of the fingerprint of each result."""

    name: str
    version: int
    samples: int | None
    """Number of samples per dataset. They are the first samples of its standard order. None means all samples."""
    seed: int = 0
    image_size: int | None = None
    """Height and width in pixels to which the images of --images are resized. None means the model's input size."""
    precision: str = "float32"
    """Precision of the image encoder during the attack: "float32", "bfloat16" or "float16". Losses are float32."""
    iterate: str = "best"
    """The iterate that PGD returns: "final" or "best". "best" is the first misclassified iterate. If all iterates are
    classified correctly, it is the iterate with the highest loss."""
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """Prompts that replace the prompts of datasets. The keys are the names of the datasets."""
    verdict_precision: str = field(default="float32", metadata=LATER)
    """Precision of the image encoder when the benchmark classifies the clean and the adversarial images."""
    datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """Names of the datasets in the paper whose evaluation this protocol follows. () means the datasets of the track."""
    missing_datasets: tuple[str, ...] = field(default=(), metadata=LATER)
    """Datasets of the paper that this package cannot run. Without them, means are not comparable with the paper."""
    logit_precision: str = field(default="float32", metadata=LATER)
    """Precision in which the product of image and text features is computed. "float16" reproduces the rounding of
    published code that runs in half precision."""
    prompt_source: str = field(default="", metadata=LATER)
    """Name of a set of prompts in the module `datasets.prompts`, for published datasets. "" means that each dataset
    keeps its own prompt."""
    transform: Transform | None = field(default=None, metadata=LATER)
    """The transform of the images of published datasets. None keeps the transform of each dataset."""
    small_transform: Transform | None = field(default=None, metadata=LATER)
    """The transform for published datasets with small images of one size (CIFAR and STL10). It replaces `transform`."""
    resolution: str = field(default="protocol", metadata=LATER)
    """The size at which the images of published datasets are attacked.

    "protocol" means the size that `transform` gives. A model with another input size resizes the images in its forward
    pass. "native" means the input size of the model. `transform` is then scaled to this size. In both cases, images of
    CIFAR, STL10 and the datasets of the track mini are attacked at their stored size.
    """
    attacks: Mapping[str, str] = field(default_factory=dict, metadata=LATER)
    """Attacks that this protocol runs instead of others, such as a reduced AutoAttack. A key is the name of an attack
    that a user gives. The value is the name of the attack that runs instead."""
    step_size: str = field(default="", metadata=LATER)
    """Step size of PGD and CW in Linf, for pixels in [0, 1], such as "1/255". "" keeps the step size of each attack."""
    mean_over: int = field(default=1, metadata=LATER)
    """The number of samples over which PGD averages the cross-entropy, as published code does. With 1, each sample has
    its own loss.

    The mean makes the gradient of each sample smaller. In half precision, small gradients then become 0.
    """
    eps: tuple[str, ...] = field(default=(), metadata=LATER)
    """Linf radii of the evaluation, for pixels in [0, 1], such as "4/255". () means the standard eps of the track."""
    small_eps: tuple[str, ...] = field(default=(), metadata=LATER)
    """Linf radii for models whose input is smaller than `SMALL_INPUT`. They replace `eps`. () keeps `eps`."""
    draws: int = field(default=1, metadata=LATER)
    """The number of fresh draws with which a random model classifies the clean and the strongest image of each sample.
    With 1, the random numbers of each sample are fixed and known to the attacker."""
    eot: int = field(default=1, metadata=LATER)
    """The number of draws of which the attacks take the mean gradient. It is used if `draws` is above 1."""
    description: str = ""
    """A few sentences about the protocol, for lists and pages."""

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution must be {' or '.join(RESOLUTIONS)}, got {self.resolution!r}")

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that can change a result, as JSON types."""
        values: dict[str, Any] = plain(counted(self))
        del values["description"]
        return values

    @property
    def label(self) -> str:
        """Name and version, as tables show them."""
        return f"{self.name}/{self.version}"

    def with_samples(self, samples: int | None) -> "Protocol":
        """Return a copy with another number of samples per dataset and a new name. None means all samples."""
        if samples == self.samples:
            return self
        return dataclasses.replace(self, name=f"{self.name}-{samples or 'all'}", samples=samples)

    def with_draws(self, draws: int, eot: int = DEFAULT_EOT) -> "Protocol":
        """Return a copy for random models, with the fields `draws` and `eot` and a new name.

        Raises UserError if the attack and the verdict of this protocol have different precisions.
        """
        if self.precision != self.verdict_precision:
            raise UserError(
                f"the protocol {self.name!r} attacks in {self.precision} and decides in {self.verdict_precision}, but"
                " draws need one precision: choose another --protocol, such as the first one of the track"
            )
        suffix = f"-draws-{draws}" + (f"-eot-{eot}" if eot != DEFAULT_EOT else "")
        return dataclasses.replace(self, name=self.name + suffix, draws=draws, eot=eot)

    def adapt_dataset(self, dataset: Dataset, input_size: int | None = None) -> Dataset:
        """Return the dataset with the protocol's prompt, class names and transform.

        `input_size` is the height and width of the model's input in pixels. It changes the transform if `resolution` is
        "native". None keeps the size of `transform`.

        Raises UserError if the protocol's prompt source lacks prompts for the published dataset.
        """
        if dataset.published and self.prompt_source:
            dataset = with_prompts(dataset, self.prompt_source)
        transform = self.small_transform if has_native_size(dataset) else self.transform
        if transform and input_size and self.resolution == "native" and not has_native_size(dataset):
            transform = transform.to_side(input_size)
        if dataset.published and transform:
            dataset = dataclasses.replace(dataset, transform=transform)
        return dataclasses.replace(dataset, prompt=self.prompts.get(dataset.name, dataset.prompt))

    def radii(self, input_size: int) -> tuple[Fraction, ...]:
        """Return the Linf radii, for pixels in [0, 1], for a model with an input of `input_size` pixels.

        The tuple is empty if the protocol does not set radii. The standard eps of the track then applies.
        """
        is_small = input_size < SMALL_INPUT and bool(self.small_eps)
        return tuple(parse_eps(text) for text in (self.small_eps if is_small else self.eps))

    def attack_name(self, name: str) -> str:
        """Return the name of the attack that this protocol runs if a user gives the attack `name`."""
        return self.attacks.get(name, name)

    def adapt_attack(self, attack: Attack, norm: str = "Linf") -> Attack:
        """Return the attack with the settings of this protocol: iterate, step size and loss.

        A stage of the attack that does not have one of these settings keeps its own behaviour.

        The step size is the change of each pixel in one step. It is used only for Linf, because an L2 step of this
        length would be too small.
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
        """Return the indices of the protocol's samples. They are the first samples of the standard order."""
        return standard_order(ids, labels)[: self.samples]
