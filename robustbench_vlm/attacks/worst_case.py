"""The harness around an attack: it projects what a stage returns, classifies it itself, and decides per sample."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_vlm import randomness
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.oracle import chunked_logits, logits_of
from robustbench_vlm.attacks.stage import Attack, Batch, Logits
from robustbench_vlm.errors import UserError
from robustbench_vlm.records import CLEAN
from robustbench_vlm.threats import distance, project


@dataclass(frozen=True)
class WorstCase:
    """The verdict on each of B samples, in their order."""

    adversarial: Tensor
    """(B, 3, H, W): the image that broke the sample, within the threat; the clean one where none did."""
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
    notes: tuple[tuple[str, ...], ...]
    """The warning codes of the stages that each sample went through."""

    @property
    def robust(self) -> Tensor:
        """(B,), bool: which samples no stage broke."""
        return torch.tensor([stage == "" for stage in self.broken_by])


def attack_samples(logits: Logits, batch: Batch, attack: Attack, *, slots: int) -> WorstCase:
    """Run an attack's stages in order, each on what is left unbroken, and return the verdict on every sample.

    Unlike a stage's batch this one holds the wrongly classified samples too. At most `slots` samples are passed at
    once. Raises UserError where the attack is not meant for the threat's norm or the model's logits are not finite;
    whatever else a stage raises is an error of the run, never a verdict.
    """
    _check(batch, attack)
    clean_logits = chunked_logits(logits, batch.images, slots)
    clean_prediction = clean_logits.argmax(dim=1)
    prediction, adversarial = clean_prediction.clone(), batch.images.clone()
    forward, backward = torch.ones_like(batch.labels), torch.zeros_like(batch.labels)
    broken_by = ["" if right else CLEAN for right in (clean_prediction == batch.labels).tolist()]
    notes: list[tuple[str, ...]] = [()] * len(broken_by)
    for stage in attack.stages:
        active = torch.tensor([n for n, name in enumerate(broken_by) if not name], dtype=torch.int64)
        active = active.to(batch.labels.device)
        if not len(active):
            break
        part = batch.at(active)
        part = replace(part, keys=randomness.derive(part.keys, stage.name))
        part_logits = logits_of(logits, active)
        outcome = stage.run(part_logits, part, slots)
        found = project(batch.threat, part.images, outcome.adversarial.detach().to(part.images))
        found_prediction = chunked_logits(part_logits, found, slots).argmax(dim=1)
        broken = found_prediction != part.labels
        adversarial[active[broken]], prediction[active[broken]] = found[broken], found_prediction[broken]
        forward[active] += outcome.forward + 1
        backward[active] += outcome.backward
        for row, n in enumerate(active.tolist()):
            broken_by[n] = stage.name if broken[row] else ""
            raised = [code for code, samples in sorted(outcome.notes.items()) if samples[row]]
            notes[n] += tuple(code for code in raised if code not in notes[n])
    return WorstCase(
        adversarial=adversarial,
        broken_by=tuple(broken_by),
        clean_prediction=clean_prediction,
        adversarial_prediction=prediction,
        margin=-margin(clean_logits, batch.labels, batch.labels),
        distance=distance(batch.threat, batch.images, adversarial),
        forward=forward,
        backward=backward,
        notes=tuple(notes),
    )


def _check(batch: Batch, attack: Attack) -> None:
    if batch.threat.norm not in attack.norms:
        raise UserError(
            f"the attack {attack.name!r} is for {' and '.join(attack.norms)}, not for {batch.threat.norm}: "
            "choose another attack, such as autoattack, or another --norm"
        )
