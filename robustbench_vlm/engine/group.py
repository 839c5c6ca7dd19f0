"""Groups: shards of several cells that one worker attacks together, so that small cells fill its batches too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.estimate import Resources
from robustbench_vlm.engine.shard import run_shards
from robustbench_vlm.engine.store import Finished, missing_ranges
from robustbench_vlm.records import SampleResult
from robustbench_vlm.threats import Threat

_SHARDS = 2
"""Whole shards in a group: half of its samples may fall early, and the others still fill a batch."""


@dataclass(frozen=True)
class Group:
    """Shards of cells that differ in their data sets alone: what a worker is handed."""

    shards: tuple[Shard, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.shards))

    def __len__(self) -> int:
        return sum(map(len, self.shards))


def run_group(cells: Sequence[Cell], resources: Resources, group: Group) -> list[list[SampleResult]]:
    """Compute the records of a group's shards, in their order; raises what `run_shards` raises."""
    return run_shards(cells, resources, group.shards)


def missing_groups(cells: Sequence[Cell], finished: Sequence[Finished], resources: Resources) -> list[Group]:
    """Return the groups that are not wholly on disk, without the shards of them that other groups wrote.

    What shares a pass may change the last bit of a number, so a group that was cut off is run again as a whole: then
    a run that was killed ends in the records of an unbroken one.
    """
    groups = []
    for group in _all_groups(cells, resources):
        parts = [(shard, _missing(shard, cells, finished, resources.shard_size)) for shard in group.shards]
        if any(missing for _, missing in parts):
            again = [missing or _written(shard, finished) for shard, missing in parts]
            groups.append(Group(tuple(shard for part in again for shard in part)))
    return groups


def _all_groups(cells: Sequence[Cell], resources: Resources) -> Iterator[Group]:
    alike: dict[int | tuple[str, str, Threat], list[Shard]] = {}
    for number, cell in enumerate(cells):
        mixed = all(stage.takes_mixed for stage in cell.attack.stages)
        key = (cell.model, cell.attack.name, cell.threat) if mixed else number
        nothing = Finished((), ())
        for start, stop in missing_ranges(len(cell), nothing, resources.shard_size):
            alike.setdefault(key, []).append(Shard(number, start, stop, cell.fingerprint))
    for key, shards in alike.items():
        if isinstance(key, int):
            yield from (Group((shard,)) for shard in shards)
        else:
            yield from _packed(shards, resources)


def _packed(shards: Sequence[Shard], resources: Resources) -> list[Group]:
    """Deal shards out to groups of nearly equal size, at least one a worker, the largest shards first."""
    full = _SHARDS * resources.shard_size
    count = min(len(shards), max(-(-sum(map(len, shards)) // full), resources.workers))
    groups: list[list[Shard]] = [[] for _ in range(count)]
    for shard in sorted(shards, key=len, reverse=True):
        min(groups, key=lambda group: sum(map(len, group))).append(shard)
    return [Group(tuple(sorted(group, key=lambda shard: (shard.cell, shard.start)))) for group in groups]


def _missing(shard: Shard, cells: Sequence[Cell], finished: Sequence[Finished], shard_size: int) -> list[Shard]:
    ranges = missing_ranges(len(cells[shard.cell]), finished[shard.cell], shard_size)
    cut = [(max(start, shard.start), min(stop, shard.stop)) for start, stop in ranges]
    return [Shard(shard.cell, start, stop, shard.fingerprint) for start, stop in cut if start < stop]


def _written(shard: Shard, finished: Sequence[Finished]) -> list[Shard]:
    pieces = finished[shard.cell].pieces
    return [shard] if any((piece.start, piece.stop) == (shard.start, shard.stop) for piece in pieces) else []
