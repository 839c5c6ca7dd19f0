"""Attack samples in the second phase of an estimated run, and join the records of both phases."""

import dataclasses
from collections.abc import Sequence

import torch

from robustbench_vlm.attacks.model import SurrogateClassifier
from robustbench_vlm.attacks.phases import Phases
from robustbench_vlm.attacks.sanity import sanity_cost
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import precise_classifier
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import run_group
from robustbench_vlm.engine.shard_groups import ShardGroup


def run_second_phase(
    cells: Sequence[Cell], phases: Phases, resources: Resources, group: ShardGroup
) -> list[list[SampleResult]]:
    """Attack survivors of the first phase and return one list of records per shard.

    `cells` are the cells of the second phase. Some passes of the first phase are repeated, and the repetitions are not
    counted. Both phases together therefore have as many passes as the undivided attack.
    """
    found = []
    for shard, results in zip(group.shards, run_group(cells, resources, group), strict=True):
        forward, backward = _repeated_passes(cells[shard.cell], phases, resources)
        found.append(
            [
                dataclasses.replace(each, forward=each.forward - forward, backward=each.backward - backward)
                for each in results
            ]
        )
    return found


def joined(first: SampleResult, second: SampleResult, stage: str) -> SampleResult:
    """Return the record of a sample that both phases have attacked.

    `stage` is the name of the first stage of the second phase. The second phase classifies the clean images again, in
    other batches. If the two largest logits of an image are nearly equal, rounding may change the prediction. If it is
    now wrong, the sample counts as broken by this stage.
    """
    warnings = [code for each in (first, second) for code in each.warnings.split(",") if code]
    return dataclasses.replace(
        first,
        adversarial_prediction=second.adversarial_prediction,
        broken_by=stage if second.broken_by == CLEAN else second.broken_by,
        distance=second.distance,
        forward=first.forward + second.forward,
        backward=first.backward + second.backward,
        warnings=",".join(dict.fromkeys(warnings)),
    )


def _repeated_passes(cell: Cell, phases: Phases, resources: Resources) -> tuple[int, int]:
    """Return the numbers of forward and backward passes that the second phase repeats for each sample."""
    about = cell.model, cell.track, cell.dataset.prompts, resources.device
    protocol = cell.protocol
    attacked, judge = (
        precise_classifier(*about, name, protocol.logit_precision).of_samples(torch.zeros(1, dtype=torch.int64))
        for name in (protocol.precision, protocol.verdict_precision)
    )
    checks = sanity_cost(attacked)
    seen = attacked if protocol.precision == protocol.verdict_precision else SurrogateClassifier(attacked, judge)
    return checks[0] + phases.repeated(seen, judge, len(cell.dataset.classes)), checks[1]
