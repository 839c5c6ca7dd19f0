"""Data classes of attacks, stages, batches and outcomes, and the signature of stage functions."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import NORMS, Threat

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The samples that a stage attacks. The model classifies all clean images of the batch correctly."""

    images: "Tensor"
    """Clean images, float32 (B, 3, H, W) in [0, 1]."""
    labels: "Tensor"
    """True classes, int64 (B,)."""
    keys: "Tensor"
    """The key of each sample, int64 (B,): the seed of the random numbers that this stage draws for the sample."""
    threat: Threat
    num_classes: "Tensor"
    """The number of classes of each sample's dataset, int64 (B,). A batch may have samples of several datasets."""
    other_images: "Tensor | None" = None
    """For each sample, clean images of samples of other classes, float32 (B, R, 3, H, W) in [0, 1]. Only stages with
    `needs_other_images` use them. `attacks.other_sample_start` chooses them.
    """

    def at(self, index: "Tensor") -> "Batch":
        """Return the samples at the positions `index`, int64 (N,), in that order."""
        return replace(
            self,
            images=self.images[index].contiguous(),
            labels=self.labels[index],
            keys=self.keys[index],
            num_classes=self.num_classes[index],
            other_images=None if self.other_images is None else self.other_images[index],
        )


@dataclass(frozen=True)
class Outcome:
    """The result of a stage for each sample of its batch.

    `attack_samples` projects the images of every stage and classifies them again. Therefore an error in the code of a
    stage cannot make an attack count as successful.
    """

    adversarial: "Tensor"
    """The strongest image that the stage found for each sample, float32 (B, 3, H, W) in [0, 1]."""
    forward: "Tensor"
    """Forward passes through the network for each sample, int64 (B,)."""
    backward: "Tensor"
    """Backward passes through the network for each sample, int64 (B,)."""
    warnings: dict[str, "Tensor"] = field(default_factory=dict)
    """Warnings of the stage. The keys are codes, such as "dlr-needs-3-classes". The values, bool (B,), are True for the
    samples with this warning.
    """
    zero_gradients: "Tensor | None" = None
    """The share of the gradients of each sample that were exactly zero, float32 (B,) in [0, 1]. It is NaN if the stage
    computed no gradient for the sample, and None if the stage does not count them.
    """

    def warn(self, code: str, index: "Tensor") -> None:
        """Add a warning to the samples at the positions `index`, int64 (N,)."""
        import torch

        self.warnings.setdefault(code, torch.zeros_like(self.forward, dtype=torch.bool))[index] = True

    def spread(self, index: "Tensor", batch: Batch) -> "Outcome":
        """Return an outcome for a whole batch, if this outcome is for only N samples of the batch.

        `index`, int64 (N,), has the positions of these N samples in the batch. For the other samples, the returned
        outcome has the clean image and zero passes.
        """
        nothing = batch.labels.new_zeros(len(batch.labels))
        whole = Outcome(batch.images.clone(), nothing.clone(), nothing.clone())
        whole.adversarial[index] = self.adversarial
        whole.forward[index], whole.backward[index] = self.forward, self.backward
        for code, samples in self.warnings.items():
            whole.warn(code, index[samples])
        if self.zero_gradients is None:
            return whole
        zero = self.zero_gradients.new_full((len(nothing),), float("nan"))
        zero[index] = self.zero_gradients
        return replace(whole, zero_gradients=zero)


class StageFunction(Protocol):
    """Type of the function of a stage.

    The function passes at most `batch_size` images through the network at once. `parameters` are the parameters of the
    stage.
    """

    def __call__(self, classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
        """Attack every sample of the batch and return the outcome in the order of the batch."""


class StageCalls(Protocol):
    """Type of the function that counts the classifier calls of a stage.

    The result is the number of calls for one sample that stays robust.
    """

    def __call__(self, parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
        """Return the number of calls without a gradient and the number of calls with a gradient."""


def hundred_gradients(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return (0, 100): no calls without a gradient and 100 calls with a gradient, the default for a stage."""
    return 0, 100


def calls_per_target(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for an attack that runs once per target and restart.

    One call without a gradient chooses the targets. This call is also counted for untargeted attacks. Each run has one
    call with a gradient at its starting point and one after each step. `parameters` contains "steps", and may contain
    "targets", "restarts" and "skip". The value of "skip" is the number of targets that an earlier stage attacked.
    """
    skip = int(parameters.get("skip", 0))
    targets = max(min(int(parameters.get("targets", 0)), num_classes - 1), 1) - skip
    if targets <= 0:
        return 0, 0
    return 1, (int(parameters["steps"]) + 1) * targets * int(parameters.get("restarts", 1))


GradientWay = Literal["loop", "identity", "truncated", "constant", "straight-through", "estimated", "transfer"]
"""A way to compute the gradient of a defense.

"loop": the gradient flows through the model and the inner loops of the defense. "identity": as "loop", but rounding,
`sign` and `detach` have the gradient of the identity (`attacks.automatic_surrogate`). "truncated": the gradient flows
through the defense with only one step of its inner loop. "constant": the gradient treats the results of the inner loops
as constants, so it passes an added perturbation unchanged (BPDA with the identity, arXiv:1802.00420). "straight-
through": the loss is computed from the logits of the defense, and the gradient flows through the model without the
defense. "estimated": the gradient is estimated from differences of logits (arXiv:1804.08598). "transfer": the stage
attacks the model without the defense.
"""


@dataclass(frozen=True)
class GradientMode:
    """A method to compute the gradient of a model with a test-time defense, for the attack on this model."""

    name: str
    """Prefix of the names of the stages that use this mode, such as "loop" in "loop:apgd-ce"."""
    gradient: GradientWay
    draws: int = 1
    """Number of gradients of which the mean is taken (EOT, arXiv:1707.07397). The defense draws new random numbers for
    each of them. The predicted class is computed with the first random numbers only."""


_OTHER_GRADIENTS = ("straight-through", "estimated", "transfer")
"""The ways that do not use the gradient of the attacked classifier."""


@dataclass(frozen=True)
class Stage:
    """One stage of an attack. It has an algorithm, its version, its parameters and the function that runs it."""

    name: str
    algorithm: str
    """Name of the algorithm, such as "apgd". It is part of `identity`."""
    function: str
    """Import path of the stage function, "module:function". It is not part of `identity`, so the function may move."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    """Version of the algorithm. Increase it if a change of the code can change a verdict."""
    calls: StageCalls = hundred_gradients
    """The function that counts the classifier calls of the stage for a sample that stays robust."""
    gradient_free: bool = False
    """True if the algorithm does not use gradients of the classifier."""
    mixes_datasets: bool = False
    """True if the stage function accepts batches with samples of several datasets. To classify only some samples of
    such a batch, the function must use the classifier that `Classifier.select` returns for these samples.
    """
    transfers: bool = False
    """True if the algorithm attacks a surrogate of the classifier, if there is one (`attacks.adaptive`)."""
    needs_other_images: bool = False
    """True if the algorithm uses `Batch.other_images`."""
    gradient_mode: GradientMode | None = None
    """The way to compute the gradient of a test-time defense. If it is None, the classifier is attacked directly."""
    adjustable: tuple[str, ...] = ()
    """Names of the parameters that a protocol may set. The parameter "iterate" is "best" or "final" and chooses the
    iterate that is returned. The parameter "step_size" is the step size as a fraction of the pixel range. The parameter
    "mean_over" is the divisor of the cross-entropy.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """The fields of the stage that decide its outcome."""
        identity = {
            "name": self.name,
            "algorithm": self.algorithm,
            "version": self.version,
            "parameters": dict(self.parameters),
        }
        # The key "view" is an old name of the gradient mode. Fingerprints are hashes of this dict, so the key must not
        # change.
        return identity | ({"view": plain(self.gradient_mode)} if self.gradient_mode else {})

    @property
    def is_black_box(self) -> bool:
        """True if the stage uses no gradients of the classifier, or only gradients of another classifier."""
        mode = self.gradient_mode
        return self.gradient_free or self.transfers or (mode is not None and mode.gradient in _OTHER_GRADIENTS)

    @property
    def chooses_iterate(self) -> bool:
        """True if a protocol can choose between the best and the final iterate."""
        return "iterate" in self.adjustable

    def run(self, classifier: Classifier, batch: Batch, batch_size: int) -> Outcome:
        """Run the stage on a batch and return its outcome. Exceptions of the stage function are not caught."""
        module, _, function = self.function.partition(":")
        stage: StageFunction = getattr(importlib.import_module(module), function)
        return stage(classifier, batch, batch_size=batch_size, **self.parameters)


@dataclass(frozen=True)
class Attack:
    """A sequence of stages. Each stage attacks the samples that are still robust after the stages before it."""

    name: str
    stages: tuple[Stage, ...]
    description: str
    norms: tuple[str, ...] = NORMS
    paper: str = ""
    strength: int | None = None
    """A rank: fgsm < pgd-N < autoattack. The robust accuracy under an attack with a higher rank should not be higher
    than under one with a lower rank. An attack with the value None is not compared with other attacks.
    """
    continues_without_gradient: bool = False
    """True if the attack skips each stage that needs a gradient if the logits of the classifier have none. This counts
    as a gradient of zero. If it is False, the attack ends with a UserError.
    """

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
    """Return an attack with only one stage. The attack has the name of the stage."""
    return Attack(stage.name, (stage,), description, norms, paper, strength)
