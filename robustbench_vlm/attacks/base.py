"""What an attack is: a tuple of stages as data, and the one signature that every stage function has."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import NORMS, Threat

Logits = Callable[[Tensor], Tensor]
"""A classifier: images (B, 3, H, W) in [0, 1] to float32 logits (B, C), each row a function of its own image only."""


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
    """(B,), int64: how many classes each sample may be taken for; a batch may mix datasets."""

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
    """What a stage hands back for every sample of its batch; the harness trusts none of it and classifies again."""

    adversarial: Tensor
    """(B, 3, H, W): the strongest image that the stage found."""
    forward: Tensor
    backward: Tensor
    """(B,), int64: passes through the network spent on each sample."""
    notes: dict[str, Tensor] = field(default_factory=dict)
    """Warning codes, such as that of a loss that had to be replaced, each with the samples (B,), bool, that have it."""

    def note(self, code: str, index: Tensor) -> None:
        """Note a warning on the samples at `index`."""
        self.notes.setdefault(code, torch.zeros_like(self.forward, dtype=torch.bool))[index] = True


class StageFunction(Protocol):
    """A stage: `batch_size` is how many samples it may hold in memory at once; the parameters are the stage's own."""

    def __call__(self, logits: Logits, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
        """Attack every sample of the batch and return what was found, in the batch's order."""


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
class View:
    """How a stage sees a classifier that is a procedure and not only weights."""

    name: str
    """Its word in the names of stages."""
    gradient: Literal["loop", "constant", "transfer"]
    """Through the procedure's inner loops; with what these find as a constant (BPDA, arXiv:1802.00420); or that of the
    model without the procedure, which then is what the stage attacks."""
    draws: int = 1
    """Random numbers over which the gradient is averaged (EOT, arXiv:1707.07397); the first are the sample's own."""


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
    takes_mixed: bool = False
    """Whether the function asks `logits_of` for its classifier, so that samples of several datasets may share it."""
    view: View | None = None
    """How the stage sees a test-time defense; None: the classifier as it is."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The parts of the stage that its outcome depends on."""
        identity = {
            "name": self.name,
            "algorithm": self.algorithm,
            "version": self.version,
            "parameters": dict(self.parameters),
        }
        return identity | ({"view": plain(self.view)} if self.view else {})

    @property
    def is_black_box(self) -> bool:
        """Whether it uses no gradient of the classifier that gives the verdicts."""
        return self.gradient_free or (self.view is not None and self.view.gradient == "transfer")

    @property
    def chooses_iterate(self) -> bool:
        """Whether a parameter says which iterate counts, the "best" or the "final" one."""
        return "iterate" in self.parameters

    def run(self, logits: Logits, batch: Batch, batch_size: int) -> Outcome:
        """Run the stage on a batch; whatever it raises is an error of the run."""
        module, _, function = self.function.partition(":")
        stage: StageFunction = getattr(importlib.import_module(module), function)
        return stage(logits, batch, batch_size=batch_size, **self.parameters)


@dataclass(frozen=True)
class Attack:
    """Stages in their order: each one gets what the ones before it left unbroken."""

    name: str
    stages: tuple[Stage, ...]
    description: str
    norms: tuple[str, ...] = NORMS
    paper: str = ""
