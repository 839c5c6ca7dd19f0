"""The verdicts: run the stages of an attack, project and re-classify their images, and decide for each sample."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import SurrogateClassifier, logits_in_batches, with_gradient
from robustbench_vlm.attacks.projections import as_factor, distance, project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import ClassifierLike, as_classifier
from robustbench_vlm.core.records import CLEAN


@dataclass(frozen=True)
class Verdicts:
    """The verdict on each of B samples, in their order."""

    adversarial: Tensor
    """(B, 3, H, W): the image that broke the sample, within the threat; the clean one of other samples."""
    strongest: Tensor
    """(B, 3, H, W): the same; but for a robust sample the image with the smallest margin of the label, of the clean one
    and those that the stages found."""
    broken_by: tuple[str, ...]
    """The stage that broke it, "clean" if it was wrong without an attack, "" if it is robust."""
    clean_prediction: Tensor
    adversarial_prediction: Tensor
    margin: Tensor
    """(B,): clean logit of the label minus the largest other."""
    distance: Tensor
    """(B,): size of the kept perturbation in the threat's norm."""
    forward: Tensor
    backward: Tensor
    """(B,), int64: passes spent on each sample, the harness's own included."""
    warnings: tuple[tuple[str, ...], ...]
    """The warning codes of the stages that each sample went through."""

    @property
    def robust(self) -> Tensor:
        """(B,), bool: which samples no stage broke."""
        return torch.tensor([stage == "" for stage in self.broken_by])


def attack_samples(
    model: ClassifierLike, batch: Batch, attack: Attack, *, batch_size: int, judge: ClassifierLike | None = None
) -> Verdicts:
    """Run an attack's stages in order, each on the samples that are still robust, and return all verdicts.

    `model` is a classifier, or any torch module from images in [0, 1] to logits. Unlike the batch of a stage, `batch`
    may hold misclassified samples. `judge`, if given, decides the verdicts in place of `model`: the same network in
    another precision. It also classifies every image that a stage finds, because an image that only the attacked model
    gets wrong does not end a sample. At most `batch_size` samples are passed at once. Raises UserError if the attack
    does not support the norm of the threat, or a logit is not finite. Any other exception of a stage is an error of
    the run, never a verdict.
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
    warnings: list[tuple[str, ...]] = [()] * len(broken_by)
    for stage in attack.stages:
        active = torch.tensor([n for n, name in enumerate(broken_by) if not name], dtype=torch.int64)
        active = active.to(batch.labels.device)
        if not len(active):
            break
        part = batch.at(active)
        part = replace(part, keys=randomness.derive(part.keys, stage.name))
        outcome = stage.run(with_gradient(attacked.select(active), stage.gradient_mode), part, batch_size)
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
        for row, n in enumerate(active.tolist()):
            broken_by[n] = stage.name if broken[row] else ""
            raised = [code for code, samples in sorted(outcome.warnings.items()) if samples[row]]
            warnings[n] += tuple(code for code in raised if code not in warnings[n])
    is_broken = torch.tensor([name not in ("", CLEAN) for name in broken_by], device=batch.labels.device)
    adversarial = torch.where(as_factor(is_broken), strongest, batch.images)
    return Verdicts(
        adversarial=adversarial,
        strongest=strongest,
        broken_by=tuple(broken_by),
        clean_prediction=clean_prediction,
        adversarial_prediction=prediction,
        margin=-margin(clean_logits, batch.labels, batch.labels),
        distance=distance(batch.threat, batch.images, adversarial),
        forward=forward,
        backward=backward,
        warnings=tuple(warnings),
    )
