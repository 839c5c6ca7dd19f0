"""Divide an attack into a cheap first phase and an expensive second phase, for estimated runs.

An estimated run attacks all samples with the first phase and only some samples with the second phase. The two phases
together are equal to the undivided attack: for each sample, they have the same success in the same stage.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN


@dataclass(frozen=True)
class Phases:
    """The two phases of an attack."""

    first: Attack
    """The phase for all samples. It is the first stage of the attack. If the second stage is targeted APGD, the first
    target of the second stage also belongs to this phase."""
    second: Attack
    """The phase for samples that are robust to the first phase. It has all other targets and stages."""

    @property
    def shared(self) -> Stage | None:
        """The divided stage: the first phase attacks its first target, and the second phase its other targets.

        Returns the part in the second phase, or None if no stage is divided.
        """
        stage = self.second.stages[0]
        return stage if "skip" in stage.parameters else None

    def repeated(self, attacked: Classifier, judge: Classifier, num_classes: int) -> int:
        """Return the number of forward passes for one sample that both phases make.

        The undivided attack makes these passes only once. Both phases classify the clean image. If a stage is divided,
        both phases also choose the targets of this stage, and classify the image that it returns.
        """
        # Leaderboards import this module, but do not need torch.
        from robustbench_vlm.attacks.model import with_gradient

        verdict = judge.cost(gradient=False)[0]
        if self.shared is None:
            return verdict
        asked, _ = self.shared.calls(self.shared.parameters, num_classes)
        return 2 * verdict + asked * with_gradient(attacked, self.shared.gradient_mode).cost(gradient=False)[0]


def divide(attack: Attack) -> Phases:
    """Return the phases of an attack.

    Raises UserError if the attack has only one stage and this stage cannot be divided.

    An example is AutoAttack at 5/255 on the six bundled models with the highest robust accuracy. If the first phase is
    APGD on cross-entropy, the second phase succeeds for 1.5 to 5 % of the samples that are robust to the first phase.
    One more run of APGD, on the target with the highest logit, about doubles the cost of the first phase. The second
    phase then succeeds for 0.4 to 1.5 % (`benchmarks/estimated_runs.json`).
    """
    identities = [stage.identity for stage in attack.stages]
    count = _cheap_stages(identities)
    cheap, rest = list(attack.stages[:count]), list(attack.stages[count:])
    if _is_divisible(identities, count):
        stage = rest[0]
        cheap.append(dataclasses.replace(stage, parameters={**stage.parameters, "targets": 1}))
        rest[0] = dataclasses.replace(stage, parameters={**stage.parameters, "skip": 1})
    if not rest:
        raise UserError(
            f"the attack {attack.name!r} has only one stage, so it cannot be estimated: leave --half-width out, or give"
            " an attack with several stages, such as autoattack"
        )
    return Phases(*(dataclasses.replace(attack, stages=tuple(stages)) for stages in (cheap, rest)))


def stages_passed(stages: Sequence[Mapping[str, Any]], broken_by: str, *, both: bool) -> str:
    """Return the stages that attacked a sample in an estimated run, separated by commas.

    A stage of which only the first target was attacked has the suffix ":1". A sample that survived the first phase of
    AutoAttack has "apgd-ce,apgd-t:1". A sample that is misclassified without an attack has "".

    Args:
        stages: `Stage.identity` of each stage of the undivided attack.
        broken_by: `SampleResult.broken_by` of the sample.
        both: True if both phases attacked the sample. False if only the first phase did.
    """
    names = [str(stage["name"]) for stage in stages]
    count = _cheap_stages(stages)
    first = [*names[:count], *([f"{names[count]}:1"] if _is_divisible(stages, count) else [])]
    passed = names if both else first
    stop = next((n for n, name in enumerate(passed, 1) if name.removesuffix(":1") == broken_by), len(passed))
    return "" if broken_by == CLEAN else ",".join(passed[:stop])


def _cheap_stages(stages: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of undivided stages in the first phase. `stages` has `Stage.identity` of each stage."""
    return 0 if len(stages) == 1 and _is_divisible(stages, 0) else 1


def _is_divisible(stages: Sequence[Mapping[str, Any]], number: int) -> bool:
    """Return whether the stage at the index `number` exists and attacks several targets one after another."""
    if number >= len(stages) or stages[number].get("algorithm") != "apgd":
        return False
    return int(stages[number]["parameters"].get("targets", 0)) > 1
