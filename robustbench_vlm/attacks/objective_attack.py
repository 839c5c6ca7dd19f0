"""APGD that also increases the objective of a test-time defense, such as the score of its detector.

The loss is the margin plus `weight` times the objective. The objective is scaled for each sample: at the clean image,
the L2 norms of the gradients of both parts are equal. Test-time defenses state their objective in `TestTimeDefense`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import apgd
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.attacks.losses import LOSSES
from robustbench_vlm.attacks.model import CountedClassifier, SurrogateClassifier, checked_logits
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate, StraightThroughClassifier
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError


@runtime_checkable
class HasObjective(Classifier, Protocol):
    """A classifier with a test-time defense that may have an objective."""

    def objective(self, images: Tensor) -> Tensor:
        """Return the objective, float32 (B,), for images (B, 3, H, W), with a gradient."""

    def objective_cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of `objective` for one sample."""

    def select(self, index: Tensor) -> "HasObjective":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""


@dataclass(frozen=True)
class ObjectiveOnly:
    """A classifier whose single logit is the objective of a defense."""

    defended: HasObjective

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the objective, float32 (B, 1), of images (B, 3, H, W), one for each sample."""
        return self.defended.objective(images)[:, None]

    def select(self, index: Tensor) -> "ObjectiveOnly":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return ObjectiveOnly(self.defended.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of the objective."""
        return self.defended.objective_cost(gradient=gradient)


@dataclass(frozen=True)
class WithObjective:
    """A classifier whose logit of the label is lower, the larger the objective of the defense is."""

    classifier: Classifier
    objective: ObjectiveOnly
    labels: Tensor
    """True classes, int64 (B,)."""
    factor: Tensor
    """The factor of the objective of each sample, float32 (B,)."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        lowered = -self.factor[:, None] * self.objective(images)
        return checked_logits(self.classifier, images).scatter_add(1, self.labels[:, None], lowered)

    def select(self, index: Tensor) -> "WithObjective":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        parts = self.classifier.select(index), self.objective.select(index)
        return WithObjective(*parts, self.labels[index], self.factor[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call of the classifier and the objective."""
        own, other = self.classifier.cost(gradient=gradient), self.objective.cost(gradient=gradient)
        return own[0] + other[0], own[1] + other[1]


def objective_apgd(
    classifier: Classifier, batch: Batch, *, batch_size: int, weight: float, **parameters: Any
) -> Outcome:
    """Attack all samples of a batch with APGD on the loss and the objective. The parameters are the fields of `Apgd`.

    Raises UserError if the attacked model has no test-time defense, or if the defense has no objective.
    """
    attacked = classifier.surrogate if isinstance(classifier, SurrogateClassifier) else classifier
    defended, loss = _defended(classifier), parameters["loss"]
    objective = ObjectiveOnly(defended)
    factors = [
        _factors(attacked.select(part), objective.select(part), batch.at(part), loss)
        for part in torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size)
    ]
    changed = WithObjective(attacked, objective, batch.labels, weight * torch.cat(factors))
    outcome = apgd(SurrogateClassifier(changed, defended), batch, batch_size=batch_size, **parameters)
    spent = attacked.cost(gradient=True), objective.cost(gradient=True)
    forward, backward = (sum(passes) for passes in zip(*spent, strict=True))
    return replace(outcome, forward=outcome.forward + forward, backward=outcome.backward + backward)


def _factors(attacked: Classifier, objective: ObjectiveOnly, batch: Batch, loss: str) -> Tensor:
    """Return the norm of the gradient of the loss over that of the objective at the clean images, float32 (B,)."""
    labels = batch.labels
    *_, of_loss = CountedClassifier(attacked).gradient(
        batch.images, lambda logits: LOSSES[loss](logits, labels, labels)
    )
    *_, of_objective = CountedClassifier(objective).gradient(batch.images, lambda values: values[:, 0])
    norms = [gradient.flatten(1).norm(dim=1) for gradient in (of_loss, of_objective)]
    # If the gradient of the loss is zero, the attack follows the objective only.
    return torch.where((norms[0] > 0) & (norms[1] > 0), norms[0] / norms[1], 1)


def _defended(classifier: Classifier) -> HasObjective:
    """Return the classifier with the defense, whose gradient the classifier replaces."""
    if isinstance(classifier, SurrogateClassifier):
        return _defended(classifier.judge)
    if isinstance(classifier, ClassifierWithSurrogate | StraightThroughClassifier):
        return _defended(classifier.classifier)
    if isinstance(classifier, HasObjective):
        return classifier
    raise UserError(
        "the algorithm 'apgd-objective' needs a model with a test-time defense, but the attacked model has none: attack"
        " DEFENSE+MODEL, or choose another algorithm, such as 'apgd'"
    )


def objective_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return an upper bound of the number of calls without and with a gradient for a sample that stays robust.

    The objective needs at most as many passes as the logits. The model with the defense classifies every iterate.
    """
    without, with_gradient = calls_per_target(parameters, num_classes)
    return without + with_gradient, 2 * (with_gradient + 1)


OBJECTIVE_STAGE = Stage(
    "apgd-objective",
    "apgd-objective",
    f"{__name__}:objective_apgd",
    {"loss": "margin", "weight": 1.0, "steps": 100, "targets": 0, "restarts": 1},
    calls=objective_calls,
)
