"""Attack samples of an entry again, up to a stage of the attack, and return their records, margins and images.

A cell is one attack on one dataset at one radius. Many samples need only some stages of the attack. A sample that is
broken in the records is attacked up to the stage that broke it. A sample that is robust in the records is attacked with
the cheap first stage, and only some samples are attacked with all stages.
"""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from robustbench_vlm.analysis.verdict import image_margins
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import attack_group
from robustbench_vlm.engine.shard_groups import ShardGroup, packed_groups


@dataclass(frozen=True, order=True)
class Task:
    """A sample to attack again, and the number of stages to run."""

    cell: int
    """Index of the sample's cell in the entry."""
    stages: int
    """Number of stages of the attack, at least 1."""
    position: int
    """Index of the sample within the records of its cell."""


@dataclass(frozen=True)
class Recomputed:
    """The new record of a sample, and the strongest image that the attack found."""

    result: SampleResult
    margin: float
    """The margin of the strongest image, as a difference of cosine similarities. It is negative if the image is
    misclassified."""
    image: "np.typing.NDArray[np.float32] | None"
    """The strongest image, float32 [3, H, W] in [0, 1]. It is None unless the image breaks a sample that is robust in
    the records."""


def recompute(
    cells: Sequence[Cell],
    tasks: Collection[Task],
    robust: AbstractSet[tuple[int, int]],
    resources: Resources,
    on_progress: OnProgress,
) -> dict[Task, Recomputed]:
    """Attack samples again and return the results.

    `cells` has the cells of the entry. `robust` has the cell and the position of each sample that is robust in the
    records.
    """
    prefixes = sorted({(task.cell, task.stages) for task in tasks})
    parts = [_prefix(cells[cell], stages) for cell, stages in prefixes]
    shards = _shards(sorted(tasks), {each: n for n, each in enumerate(prefixes)}, parts, resources.shard_size)
    groups = list(packed_groups(list(shards), parts, resources))
    wanted = {
        (n, task.position)
        for n, each in enumerate(prefixes)
        for task in tasks
        if (task.cell, task.stages) == each and (task.cell, task.position) in robust
    }
    engine: Engine = ENGINES.load(resources.engine)
    found: dict[Task, Recomputed] = {}
    begun = time.monotonic()
    with closing(engine.run_jobs(partial(_recompute_group, parts, resources, wanted), groups, resources)) as answers:
        for group, answer in answers:
            for shard, results in zip(group.shards, answer, strict=True):
                found |= zip(shards[shard], results, strict=True)
            left = (time.monotonic() - begun) / len(found) * (len(tasks) - len(found))
            on_progress(Progress(len(found), len(tasks), left))
    return found


def _prefix(cell: Cell, stages: int) -> Cell:
    """Return the cell with the first stages of its attack. The name says so, because groups have one attack each."""
    attack = cell.attack
    if stages >= len(attack.stages):
        return cell
    return dataclasses.replace(
        cell, attack=dataclasses.replace(attack, name=f"{attack.name}[:{stages}]", stages=attack.stages[:stages])
    )


def _shards(
    tasks: Sequence[Task], numbers: Mapping[tuple[int, int], int], cells: Sequence[Cell], size: int
) -> dict[Shard, list[Task]]:
    """Group sorted tasks into shards. A shard has at most `size` consecutive samples of one cell."""
    runs: list[list[Task]] = []
    for each in tasks:
        last = runs[-1][-1] if runs else None
        if last and dataclasses.replace(last, position=last.position + 1) == each and len(runs[-1]) < size:
            runs[-1].append(each)
        else:
            runs.append([each])
    found = {}
    for run in runs:
        number = numbers[run[0].cell, run[0].stages]
        found[Shard(number, run[0].position, run[-1].position + 1, cells[number].fingerprint)] = run
    return found


def _recompute_group(
    cells: Sequence[Cell], resources: Resources, wanted: AbstractSet[tuple[int, int]], group: ShardGroup
) -> list[list[Recomputed]]:
    """Attack the shards of a group. This function runs in the workers.

    Only needed images are returned, because the images of all samples may not fit into memory.
    """
    found = []
    for shard, attacked in zip(group.shards, attack_group(cells, resources, group), strict=True):
        margins = image_margins(cells[shard.cell], shard.start, attacked.images, device=resources.device)
        found.append(
            [
                Recomputed(result, margin, image.cpu().numpy() if broken and place in wanted else None)
                for result, margin, image, broken, place in zip(
                    attacked.results,
                    margins,
                    attacked.images,
                    [result.broken_by != "" for result in attacked.results],
                    [(shard.cell, position) for position in range(shard.start, shard.stop)],
                    strict=True,
                )
            ]
        )
    return found
