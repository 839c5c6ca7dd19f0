"""Adversarial images: those that the attacks of a plan end at, beside the records that a run would write of them."""

import contextlib
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import Attacked, ShardGroup, attack_group, attack_shards, missing_groups
from robustbench_vlm.engine.store import Finished

_Sent = list[tuple[Sequence[SampleResult], "np.typing.NDArray[np.float32]"]]
"""What a worker sends of each shard: tensors would go through shared memory, which containers have little of."""


def attack_cells(plan: Plan, on_attacked: Callable[[int, Cell], None]) -> list[Attacked]:
    """Attack every sample of a plan's cells by the plan's engine and return what was found, a cell each, on the CPU.

    Nothing is read from disk and nothing written; the groups, and so the records, are those of a run from nothing.
    All images are held at once. `on_attacked` is told of every group, by its number of samples and one of its cells.
    """
    cells, resources = plan.cells, plan.request.resources
    groups = missing_groups(cells, [Finished((), ())] * len(cells), resources)
    engine: Engine = ENGINES.load(resources.engine)
    found: list[dict[int, Attacked]] = [{} for _ in cells]
    function = functools.partial(_attack, cells, resources)
    with contextlib.closing(engine.run_jobs(function, groups, resources)) as answers:
        for group, sent in answers:
            for shard, (results, images) in zip(group.shards, sent, strict=True):
                found[shard.cell][shard.start] = Attacked(results, torch.from_numpy(images))
            on_attacked(len(group), cells[group.shards[0].cell])
    return [joined([parts[start] for start in sorted(parts)]) for parts in found]


def attack_positions(cell: Cell, positions: Sequence[int], resources: Resources) -> Attacked:
    """Attack the samples at some positions of a cell, together and in this process; `resources` are a plan's."""
    shards = [Shard(0, position, position + 1, cell.fingerprint) for position in positions]
    return joined(attack_shards([cell], resources, shards))


def joined(parts: Sequence[Attacked]) -> Attacked:
    """Return one of several parts of a cell."""
    results = [result for part in parts for result in part.results]
    return Attacked(results, torch.cat([part.images for part in parts]).cpu())


def _attack(cells: Sequence[Cell], resources: Resources, group: ShardGroup) -> _Sent:
    return [(attacked.results, attacked.images.cpu().numpy()) for attacked in attack_group(cells, resources, group)]
