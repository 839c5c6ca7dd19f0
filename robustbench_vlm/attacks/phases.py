"""Divide an attack into a cheap first phase and an expensive second phase, for estimated runs.

The two phases together are equal to the attack. A sample that survives both phases survives the attack, and a broken
sample is broken by the same stage as in the undivided attack.
"""

import dataclasses
from dataclasses import dataclass

from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.attacks.model import with_gradient
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError


@dataclass(frozen=True)
class Phases:
    """The two phases of an attack."""

    first: Attack
    """The phase for all samples. It consists of the first stage and, if the second stage is targeted APGD, of the first
    target of the second stage."""
    second: Attack
    """The phase for the samples that survive the first phase. It consists of all other targets and stages."""

    @property
    def shared(self) -> Stage | None:
        """The stage of the second phase that attacks the remaining targets of the first phase's last stage.

        It is None if no stage is divided.
        """
        stage = self.second.stages[0]
        return stage if "skip" in stage.parameters else None

    def repeated(self, attacked: Classifier, judge: Classifier, num_classes: int) -> int:
        """Return the forward passes of one sample that the second phase repeats.

        The second phase repeats the verdict on the clean image. If a stage is divided, the second phase also repeats
        this stage's choice of targets and its verdict.
        """
        verdict = judge.cost(gradient=False)[0]
        if self.shared is None:
            return verdict
        asked, _ = self.shared.calls(self.shared.parameters, num_classes)
        return 2 * verdict + asked * with_gradient(attacked, self.shared.gradient_mode).cost(gradient=False)[0]


def divide(attack: Attack) -> Phases:
    """Return the phases of an attack.

    Raises UserError if the attack has only one stage and this stage cannot be divided.

    On the bundled models, the other stages of AutoAttack break 2 % of the survivors of APGD on cross-entropy. APGD on
    the target with the highest logit has the same cost. If the first phase includes it, 1 % of the survivors are broken
    later (`benchmarks/estimated_runs.json`).
    """
    cheap, rest = list(attack.stages[:1]), list(attack.stages[1:])
    if not rest and _is_divisible(cheap[0]):
        cheap, rest = [], cheap
    if rest and _is_divisible(rest[0]):
        stage = rest[0]
        cheap.append(dataclasses.replace(stage, parameters={**stage.parameters, "targets": 1}))
        rest[0] = dataclasses.replace(stage, parameters={**stage.parameters, "skip": 1})
    if not rest:
        raise UserError(
            f"the attack {attack.name!r} has only one stage, so it cannot be estimated: leave --half-width out, or give"
            " an attack with several stages, such as autoattack"
        )
    return Phases(*(dataclasses.replace(attack, stages=tuple(stages)) for stages in (cheap, rest)))


def _is_divisible(stage: Stage) -> bool:
    """Return whether a stage attacks several targets one after another."""
    return stage.algorithm == "apgd" and int(stage.parameters.get("targets", 0)) > 1
