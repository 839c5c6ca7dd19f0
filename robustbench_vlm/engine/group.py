"""Groups: shards of several cells that one worker runs together, so that small cells fill its batches too."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.estimate import Resources
from robustbench_vlm.engine.meeting import meet
from robustbench_vlm.engine.shard import classifier_of, run_shard
from robustbench_vlm.engine.store import Finished, missing_ranges
from robustbench_vlm.records import SampleResult


@dataclass(frozen=True)
class Group:
    """Shards of cells that have one model: what a worker is handed."""

    shards: tuple[Shard, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.shards))

    def __len__(self) -> int:
        return sum(shard.stop - shard.start for shard in self.shards)


def missing_groups(cells: Sequence[Cell], finished: Sequence[Finished], resources: Resources) -> list[Group]:
    """Return the groups that are not wholly on disk, without the shards of them that other groups wrote.

    What shares a pass may change the last bit of a number, so a group that was cut off is run again as a whole: then
    a run that was killed ends in the records of an unbroken one.
    """
    groups = []
    for group in _all_groups(cells, resources):
        parts = [(shard, _missing(shard, cells, finished)) for shard in group.shards]
        if any(missing for _, missing in parts):
            again = [missing or _written(shard, finished) for shard, missing in parts]
            groups.append(Group(tuple(shard for part in again for shard in part)))
    return groups


def run_group(cells: Sequence[Cell], resources: Resources, group: Group) -> list[list[SampleResult]]:
    """Compute the records of a group's shards, in their order; raises what `run_shard` raises."""
    if len(group.shards) == 1:
        return [run_shard(cells, resources, group.shards[0])]

    def attend(shard: Shard, seat: nn.Module) -> list[SampleResult]:
        return run_shard(cells, resources, shard, seat)

    cell = cells[group.shards[0].cell]
    encoder = classifier_of(cell.model, cell.track, cell.dataset.prompts, resources.device).encoder
    return meet(encoder, [functools.partial(attend, shard) for shard in group.shards])


def _all_groups(cells: Sequence[Cell], resources: Resources) -> Iterator[Group]:
    by_model: dict[str, list[Shard]] = {}
    for number, cell in enumerate(cells):
        nothing = Finished((), ())
        for start, stop in missing_ranges(len(cell), nothing, resources.shard_size):
            by_model.setdefault(cell.model, []).append(Shard(number, start, stop, cell.fingerprint))
    for shards in by_model.values():
        count = len(shards)
        if resources.device == "cpu":
            count = -(-sum(shard.stop - shard.start for shard in shards) // resources.shard_size)
        # Every count-th shard: neighbours are alike in cost.
        yield from (Group(tuple(shards[first::count])) for first in range(count))


def _missing(shard: Shard, cells: Sequence[Cell], finished: Sequence[Finished]) -> list[Shard]:
    ranges = missing_ranges(len(cells[shard.cell]), finished[shard.cell], shard.stop - shard.start)
    cut = [(max(start, shard.start), min(stop, shard.stop)) for start, stop in ranges]
    return [Shard(shard.cell, start, stop, shard.fingerprint) for start, stop in cut if start < stop]


def _written(shard: Shard, finished: Sequence[Finished]) -> list[Shard]:
    pieces = finished[shard.cell].pieces
    return [shard] if any((piece.start, piece.stop) == (shard.start, shard.stop) for piece in pieces) else []
