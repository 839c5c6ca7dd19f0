"""Samples of an entry, drawn by chance and attacked again."""

import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Shard
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.engine.group import packed_groups, run_group
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.tracks import Track


@dataclass(frozen=True)
class Picked:
    """A sample of an entry."""

    evidence: int
    """The number of its cell in the entry."""
    position: int
    """Its place in that cell."""


def draw(
    evidence: Sequence[Evidence], track: Track, samples: int | None, numbers: random.Random
) -> tuple[list[Picked], list[Picked]]:
    """Return so many samples of the cells that the rank rests on, and as many of the others; None: all of both.

    The rank rests on the track's attack and radius. They are drawn without putting back, and in order; either part may
    be empty.
    """
    standard = track.attack, track.norm, track.standard_eps
    parts: tuple[list[Picked], list[Picked]] = [], []
    for n, each in enumerate(evidence):
        is_other = (each.score.attack, each.threat.norm, each.threat.eps) != standard
        parts[is_other].extend(Picked(n, position) for position in range(len(each.results)))
    ranked, others = (_drawn(part, samples, numbers) for part in parts)
    return ranked, others


def _drawn(part: list[Picked], samples: int | None, numbers: random.Random) -> list[Picked]:
    if samples is None or samples >= len(part):
        return part
    return sorted(numbers.sample(part, samples), key=lambda pick: (pick.evidence, pick.position))


def attack_again(
    plan: Plan,
    cells: Sequence[int],
    picked: Sequence[Picked],
    on_progress: OnProgress,
) -> list[SampleResult]:
    """Return new records of picked samples, in order; `cells` has the number of each piece of evidence's cell."""
    resources = plan.request.resources
    shards = _shards(plan, cells, picked)
    groups = list(packed_groups(list(shards), plan.cells, resources))
    engine: Engine = ENGINES.load(resources.engine)
    found: dict[Picked, SampleResult] = {}
    begun = time.monotonic()
    with closing(engine.run_jobs(partial(run_group, plan.cells, resources), groups, resources)) as answers:
        for group, answer in answers:
            for shard, results in zip(group.shards, answer, strict=True):
                found |= zip(shards[shard], results, strict=True)
            left = (time.monotonic() - begun) / len(found) * (len(picked) - len(found))
            on_progress(Progress(len(found), len(picked), left))
    return [found[pick] for pick in picked]


def _shards(plan: Plan, cells: Sequence[int], picked: Sequence[Picked]) -> dict[Shard, list[Picked]]:
    """Return the picked samples by shard; neighbours share one, up to the size of a shard."""
    runs: list[list[Picked]] = []
    for pick in picked:
        last = runs[-1][-1] if runs else None
        follows = last is not None and (last.evidence, last.position + 1) == (pick.evidence, pick.position)
        if follows and len(runs[-1]) < plan.request.resources.shard_size:
            runs[-1].append(pick)
        else:
            runs.append([pick])
    return {_shard(plan, cells[run[0].evidence], run): run for run in runs}


def _shard(plan: Plan, cell: int, run: Sequence[Picked]) -> Shard:
    return Shard(cell, run[0].position, run[-1].position + 1, plan.cells[cell].fingerprint)
