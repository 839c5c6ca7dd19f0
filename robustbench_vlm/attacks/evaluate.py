"""Run an attack on samples, project and classify its images, and decide which samples are robust."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import NoGradientError, SurrogateClassifier, logits_in_batches, with_gradient
from robustbench_vlm.attacks.projections import as_factor, distance, project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier, ClassifierLike, as_classifier
from robustbench_vlm.core.records import CLEAN

_NEARLY_ALL = 0.9
"""A stage had no useful gradient if at least this share of its gradients was exactly zero. FAB starts at the clean
image, where a gradient may exist that all other images of the ball lack."""
_MANY = 0.1
"""A stage had many gradients of zero if at least this share was exactly zero, such as all gradients for one of nine
target classes."""


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on B samples, in the order of the samples."""

    adversarial: Tensor
    """One image per sample, float32 (B, 3, H, W) in [0, 1]. If a stage of the attack succeeded, it is the
    misclassified image, which is inside the threat model. For other samples, it is the clean image.
    """
    strongest: Tensor
    """One image per sample, float32 (B, 3, H, W) in [0, 1]. For a robust sample, it is the image with the smallest
    margin among the clean image and the images that the stages found. For other samples, it is the image in
    `adversarial`. For a robust sample, rounding may change the choice with the batch size, see `margin`.
    """
    strongest_by: tuple[str, ...]
    """For each sample, the name of the stage that found `strongest`. It is "clean" if this is the clean image."""
    broken_by: tuple[str, ...]
    """For each sample, the name of the attack stage that found a misclassified image. It is "clean" if the clean image
    is misclassified, and "" if the sample is robust."""
    clean_prediction: Tensor
    """The class predicted for the clean image, int64 (B,)."""
    adversarial_prediction: Tensor
    """The class predicted for `adversarial`, int64 (B,)."""
    margin: Tensor
    """The margin of the clean image, float32 (B,). It is the logit of the label minus the largest other logit. The
    batch size may change its last bits, because matrix products of other sizes round differently. It changes no bit for
    the bundled models on a CPU.
    """
    distance: Tensor
    """The size of the perturbation of `adversarial` in the norm of the threat, float32 (B,)."""
    forward: Tensor
    """Forward passes for each sample, int64 (B,). This includes the passes that classify clean and adversarial
    images."""
    backward: Tensor
    """Backward passes for each sample, int64 (B,)."""
    warnings: tuple[tuple[str, ...], ...]
    """For each sample, the warning codes from the stages that attacked the sample."""

    @property
    def robust(self) -> Tensor:
        """True for robust samples, bool (B,).

        The clean image of a robust sample is classified correctly, and no stage of the attack found a misclassified
        image.
        """
        return torch.tensor([stage == "" for stage in self.broken_by], dtype=torch.bool)


def attack_samples(
    model: ClassifierLike, batch: Batch, attack: Attack, *, batch_size: int, judge: ClassifierLike | None = None
) -> Verdicts:
    """Run an attack's stages in order and return all verdicts. Each stage attacks the samples that are still robust.

    `model` is a classifier, or any torch module that maps images (B, 3, H, W) in [0, 1] to logits (B, C). `batch` may
    have samples with misclassified clean images. `judge` is an optional second classifier that decides the verdicts in
    place of `model`. An example is the same network in another precision. An attack is successful only if `judge`
    misclassifies the image. At most `batch_size` samples are classified at once.

    Raises UserError if the attack does not support the norm of the threat, or if a logit is not finite. Other
    exceptions of a stage are not caught.
    """
    attack.check_norm(batch.threat.norm)
    attacked = judged = as_classifier(model)
    if judge is not None:
        judged = as_classifier(judge)
        attacked = SurrogateClassifier(attacked, judged)
    clean_logits = logits_in_batches(judged, batch.images, batch_size)
    clean_prediction = clean_logits.argmax(dim=1)
    prediction, strongest = clean_prediction.clone(), batch.images.clone()
    strength = margin(clean_logits, batch.labels, batch.labels)
    spent = judged.cost(gradient=False)
    forward, backward = (torch.full_like(batch.labels, passes) for passes in spent)
    broken_by = ["" if right else CLEAN for right in (clean_prediction == batch.labels).tolist()]
    strongest_by = [CLEAN] * len(broken_by)
    warnings: list[tuple[str, ...]] = [()] * len(broken_by)
    zero: list[dict[str, float]] = [{} for _ in broken_by]
    for stage in attack.stages:
        active = torch.tensor([n for n, name in enumerate(broken_by) if not name], dtype=torch.int64)
        active = active.to(batch.labels.device)
        if not len(active):
            break
        part = batch.at(active)
        part = replace(part, keys=randomness.derive(part.keys, stage.name))
        outcome = _run(attack, stage, attacked.select(active), part, batch_size)
        found = project(batch.threat, part.images, outcome.adversarial.detach().to(part.images))
        found_logits = logits_in_batches(judged.select(active), found, batch_size)
        found_strength, found_prediction = margin(found_logits, part.labels, part.labels), found_logits.argmax(dim=1)
        broken = found_prediction != part.labels
        stronger = broken | (found_strength > strength[active])
        strongest[active[stronger]] = found[stronger]
        strength[active[stronger]] = found_strength[stronger]
        prediction[active[broken]] = found_prediction[broken]
        forward[active] += outcome.forward + spent[0]
        backward[active] += outcome.backward + spent[1]
        unknown = part.images.new_full((len(active),), float("nan"))
        shares = (unknown if outcome.zero_gradients is None else outcome.zero_gradients).tolist()
        for row, n in enumerate(active.tolist()):
            broken_by[n] = stage.name if broken[row] else ""
            strongest_by[n] = stage.name if stronger[row] else strongest_by[n]
            raised = [code for code, samples in sorted(outcome.warnings.items()) if samples[row]]
            warnings[n] += tuple(code for code in raised if code not in warnings[n])
            if not (math.isnan(shares[row]) or broken[row] or stage.is_black_box):
                zero[n][stage.name] = shares[row]
    is_broken = torch.tensor([name not in ("", CLEAN) for name in broken_by], dtype=torch.bool).to(batch.labels.device)
    adversarial = torch.where(as_factor(is_broken), strongest, batch.images)
    return Verdicts(
        adversarial=adversarial,
        strongest=strongest,
        strongest_by=tuple(strongest_by),
        broken_by=tuple(broken_by),
        clean_prediction=clean_prediction,
        adversarial_prediction=prediction,
        margin=-margin(clean_logits, batch.labels, batch.labels),
        distance=distance(batch.threat, batch.images, adversarial),
        forward=forward,
        backward=backward,
        warnings=tuple(codes + _zero_gradients(found) for codes, found in zip(warnings, zero, strict=True)),
    )


def _zero_gradients(stages: Mapping[str, float]) -> tuple[str, ...]:
    """Return the codes of a sample's gradients of zero.

    `stages` has the share of zero gradients in each stage that did not break the sample. If nearly all gradients of all
    these stages are zero, the code is "no-gradient". If not, there is one code for each stage with many of them.
    """
    if stages and min(stages.values()) >= _NEARLY_ALL:
        return ("no-gradient",)
    return tuple(f"zero-gradient-{name}" for name, share in stages.items() if share >= _MANY)


def _run(attack: Attack, stage: Stage, classifier: Classifier, batch: Batch, batch_size: int) -> Outcome:
    """Run one stage. If the classifier has no gradient and the attack continues without it, return the clean images."""
    try:
        return stage.run(with_gradient(classifier, stage.gradient_mode), batch, batch_size)
    except NoGradientError:
        if not attack.continues_without_gradient:
            raise
    nothing = torch.zeros_like(batch.labels)
    return Outcome(batch.images, nothing, nothing.clone(), zero_gradients=torch.ones_like(batch.images[:, 0, 0, 0]))
