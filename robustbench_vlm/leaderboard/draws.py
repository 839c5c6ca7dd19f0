"""Choose the samples of an entry that a verification attacks again.

For the verdicts that the rank depends on, all robust samples and all samples that the first stage breaks are attacked
with the first stage, because it is cheap. Random samples that a later stage breaks are attacked up to this stage. Later
stages attack only some robust samples. Those with the smallest margins after the first stage are attacked with the
second stage, because nearly all samples that a later stage breaks are among them. Random samples are attacked with all
stages, which gives a bound for the share of samples that the whole attack breaks. For each other attack and radius,
random samples are attacked.
"""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, Verdict
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.recompute import Recomputed, Task
from robustbench_vlm.tracks import Track

NEAREST = 2
"""In the part that the rank depends on, this many times `samples` robust samples are attacked with the second stage,
but at most half of the robust samples. Elsewhere, margins are known only for random samples, so there is no smallest
margin to choose."""
OTHERS = 5
"""In a part that the rank does not depend on, one in this many drawn robust samples is attacked with all stages."""


@dataclass(frozen=True)
class Part:
    """The cells of an entry under one attack at one radius."""

    cells: tuple[int, ...]
    """Indices of the cells in the entry."""
    is_ranked: bool
    """True if the rank depends on the verdicts of this part."""


@dataclass(frozen=True)
class Choice:
    """The samples of one part that are attacked in the first step."""

    part: Part
    robust: tuple[Task, ...]
    """Robust samples. If not all robust samples are attacked, they are drawn at random."""
    others: tuple[Task, ...]
    """Broken samples, samples that an estimated run did not finish, and samples that earlier verifications found
    wrong."""
    nearest: int = 0
    """Number of robust samples to choose by their margin for the second step."""
    number: int = 0
    """Number of robust samples to draw for the second step."""


def parts_of(evidence: Sequence[CellRecords], track: Track) -> list[Part]:
    """Return the parts of an entry, one for each attack and radius."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for n, each in enumerate(evidence):
        groups.setdefault((each.score.attack, each.threat.norm, each.threat.eps), []).append(n)
    ranked = track.attack, track.norm, track.standard_eps
    return [Part(tuple(cells), key == ranked) for key, cells in groups.items()]


def choose(
    evidence: Sequence[CellRecords],
    part: Part,
    samples: int | None,
    generator: random.Random,
    again: Collection[tuple[int, int]] = (),
) -> Choice:
    """Choose the samples of the first step in a part.

    Args:
        evidence: The records of all cells of the entry.
        part: The part.
        samples: The number of robust samples to attack with all stages, before `scaled` is applied. None means all
            samples.
        generator: The generator of the random draws.
        again: Cells and positions of robust samples that earlier verifications found wrong. They are attacked with all
            stages.
    """
    robust: list[Task] = []
    broken: list[Task] = []
    late: list[Task] = []
    unfinished: list[Task] = []
    for cell in part.cells:
        names = stage_names(evidence[cell])
        for position, result in enumerate(evidence[cell].results):
            if result.broken_by == "":
                robust.append(Task(cell, 1, position))
            elif result.verdict is Verdict.UNFINISHED:
                unfinished.append(Task(cell, 1, position))
            elif result.broken_by != CLEAN:
                stages = names.index(result.broken_by) + 1
                (late if stages > 1 else broken).append(Task(cell, stages, position))
    if samples is None:
        return Choice(part, tuple(with_stages(evidence, task) for task in robust), (*broken, *late, *unfinished))
    total = sum(len(evidence[cell].results) for cell in part.cells)
    earlier = [with_stages(evidence, Task(cell, 1, position)) for cell, position in again if cell in part.cells]
    number = scaled(samples, len(robust), total)
    if part.is_ranked:
        others = (*broken, *_drawn(late, samples, generator), *unfinished, *earlier)
        return Choice(part, tuple(robust), others, nearest_number(samples, len(robust)), number)
    others = (*_drawn([*broken, *late, *unfinished], samples, generator), *earlier)
    return Choice(part, tuple(_drawn(robust, samples, generator)), others, number=number // OTHERS)


def nearest_number(samples: int, robust: int) -> int:
    """Return the number of robust samples to attack with the second stage, if `robust` samples are robust."""
    return min(NEAREST * samples, robust // 2)


def scaled(samples: int, robust: int, total: int) -> int:
    """Return `samples`, or less if less than half of the samples are robust.

    The bound is a share of all samples, so few robust samples need few draws. `robust` of `total` samples are robust.
    """
    return math.ceil(samples * min(1.0, 2 * robust / total))


def choose_later(
    evidence: Sequence[CellRecords], choice: Choice, found: Mapping[Task, Recomputed], generator: random.Random
) -> tuple[list[Task], list[Task]]:
    """Choose the robust samples that later stages attack in the second step.

    `found` has the results of the first step. The second returned list has random samples, with all stages. The first
    list has the samples with the smallest margins, with the second stage. Samples in the second list are left out of
    the first one, because all stages include the second stage. Both lists are empty if the first step ran the whole
    attack. Samples that the first step broke are left out.
    """
    left = [task for task in choice.robust if found[task].result.broken_by == ""]
    if not left or left[0] == with_stages(evidence, left[0]):
        return [], []
    drawn = _drawn(left, choice.number, generator)
    near = sorted(left, key=lambda task: (found[task].margin, task))[: choice.nearest]
    return (
        [with_stages(evidence, task, 2) for task in near if task not in drawn],
        [with_stages(evidence, task) for task in drawn],
    )


def stage_names(cell: CellRecords) -> list[str]:
    """Return the names of the stages of the attack of a cell."""
    return [stage["name"] for stage in cell.identity["attack"]["stages"]]


def with_stages(evidence: Sequence[CellRecords], task: Task, stages: int | None = None) -> Task:
    """Return the task with another number of stages. By default, it is the number of stages of the whole attack."""
    whole = len(stage_names(evidence[task.cell]))
    return Task(task.cell, whole if stages is None else min(stages, whole), task.position)


def _drawn(tasks: Sequence[Task], number: int, generator: random.Random) -> list[Task]:
    return sorted(tasks if number >= len(tasks) else generator.sample(sorted(tasks), number))
