"""Attacks and stages as data, the batch that a stage gets, and the signature of stage functions."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import NORMS, Threat


@dataclass(frozen=True)
class Batch:
    """The samples under attack, all of them classified correctly when clean."""

    images: Tensor
    """(B, 3, H, W), float32 in [0, 1]."""
    labels: Tensor
    """(B,), int64."""
    keys: Tensor
    """(B,), int64: each sample's random stream for this stage."""
    threat: Threat
    num_classes: Tensor
    """(B,), int64: the number of classes of each sample's dataset; a batch may mix datasets."""

    def at(self, index: Tensor) -> "Batch":
        """Return the samples at `index` (int64), in its order."""
        return replace(
            self,
            images=self.images[index].contiguous(),
            labels=self.labels[index],
            keys=self.keys[index],
            num_classes=self.num_classes[index],
        )


@dataclass(frozen=True)
class Outcome:
    """The result of a stage for every sample of its batch; the harness does not trust it and classifies again."""

    adversarial: Tensor
    """(B, 3, H, W): the strongest image that the stage found."""
    forward: Tensor
    backward: Tensor
    """(B,), int64: passes through the network spent on each sample."""
    warnings: dict[str, Tensor] = field(default_factory=dict)
    """Warning codes, such as that of a loss that had to be replaced, each with the samples (B,), bool, that have it."""

    def warn(self, code: str, index: Tensor) -> None:
        """Add a warning to the samples at `index`."""
        self.warnings.setdefault(code, torch.zeros_like(self.forward, dtype=torch.bool))[index] = True


class StageFunction(Protocol):
    """The function of a stage. It may hold `batch_size` samples in memory at once; the parameters are the stage's."""

    def __call__(self, classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
        """Attack every sample of the batch and return the outcome, in the batch's order."""


class StageCalls(Protocol):
    """The calls of the classifier that a stage makes for one sample that stays robust."""

    def __call__(self, parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
        """Return the number of calls for logits only and of calls with a gradient."""


def hundred_gradients(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls assumed for a stage that does not state its own: 100 gradients."""
    return 0, 100


def calls_per_target(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of an algorithm with `steps` steps for each of `targets` classes, every run to its last step."""
    targets = min(int(parameters.get("targets", 0)), num_classes - 1)
    return 1, (int(parameters["steps"]) + 1) * max(targets, 1) * int(parameters.get("restarts", 1))


@dataclass(frozen=True)
class GradientMode:
    """The way in which a stage takes the gradient of a test-time defense."""

    name: str
    """Prefix of the names of stages."""
    gradient: Literal["loop", "constant", "transfer"]
    """"loop": through the inner loops of the defense. "constant": what the inner loops find is a constant (BPDA,
    arXiv:1802.00420). "transfer": the stage attacks the model without the defense."""
    draws: int = 1
    """Random draws that the gradient is averaged over (EOT, arXiv:1707.07397); the first is the sample's own."""


@dataclass(frozen=True)
class Stage:
    """One stage of an attack: an algorithm with its version and parameters, and the function that runs it."""

    name: str
    algorithm: str
    """Name of the algorithm, such as "apgd"; part of the identity."""
    function: str
    """Import path of the stage function, "module:function". It may move; it is not part of the identity."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    """Version of the algorithm. Raise it whenever a change of the code can change a verdict."""
    calls: StageCalls = hundred_gradients
    """The calls of the classifier that the stage makes for a sample that stays robust."""
    gradient_free: bool = False
    """Whether the algorithm uses no gradient of the classifier."""
    mixes_datasets: bool = False
    """Whether samples of several datasets may share a batch: the function calls `Classifier.select` for its images."""
    gradient_mode: GradientMode | None = None
    """The way to take the gradient of a test-time defense; None: the classifier is attacked as it is."""

    adjustable: tuple[str, ...] = ()
    """Parameters that a protocol may set: "iterate" ("best" or "final", the one that counts), "step_size" (a fraction
    of the pixel range) and "mean_over" (the number that divides the cross-entropy)."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The parts of the stage that its outcome depends on."""
        identity = {
            "name": self.name,
            "algorithm": self.algorithm,
            "version": self.version,
            "parameters": dict(self.parameters),
        }
        # The key is part of fingerprints, so it keeps its first name.
        return identity | ({"view": plain(self.gradient_mode)} if self.gradient_mode else {})

    @property
    def is_black_box(self) -> bool:
        """Whether it uses no gradient of the classifier that gives the verdicts."""
        mode = self.gradient_mode
        return self.gradient_free or (mode is not None and mode.gradient == "transfer")

    @property
    def chooses_iterate(self) -> bool:
        """Whether the stage can return either its best or its final iterate."""
        return "iterate" in self.adjustable

    def run(self, classifier: Classifier, batch: Batch, batch_size: int) -> Outcome:
        """Run the stage on a batch; whatever it raises is an error of the run."""
        module, _, function = self.function.partition(":")
        stage: StageFunction = getattr(importlib.import_module(module), function)
        return stage(classifier, batch, batch_size=batch_size, **self.parameters)


@dataclass(frozen=True)
class Attack:
    """Stages in their order: each one gets the samples that the stages before it left robust."""

    name: str
    stages: tuple[Stage, ...]
    description: str
    norms: tuple[str, ...] = NORMS
    paper: str = ""
    strength: int | None = None
    """Place in the order fgsm < pgd-N < autoattack: a stronger attack must not leave more samples robust. None: the
    attack is not compared."""

    def check_norm(self, norm: str) -> None:
        """Raise UserError for a norm that the attack does not support."""
        if norm not in self.norms:
            raise UserError(
                f"the attack {self.name!r} is for {' and '.join(self.norms)}, not for {norm}: choose another attack,"
                " such as autoattack, or another --norm"
            )


def one_stage_attack(
    stage: Stage,
    description: str,
    *,
    paper: str = "",
    norms: tuple[str, ...] = NORMS,
    strength: int | None = None,
) -> Attack:
    """Return the attack that consists of one stage and has its name."""
    return Attack(stage.name, (stage,), description, norms, paper, strength)
