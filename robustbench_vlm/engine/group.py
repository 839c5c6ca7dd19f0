"""Groups: shards of several cells that one worker attacks together, so that small cells fill its batches too."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resources import Resources, with_fitting_batch_size
from robustbench_vlm.engine.shard import Attacked, attack_shards
from robustbench_vlm.engine.store import Finished, missing_ranges

_SHARDS = 2
"""Whole shards, or whole batches, in a group: half of its samples may fall early, and the others still fill a batch."""

_fitting: dict[tuple[str, str], int] = {}
"""The batch_size that fit where more did not, by model and device: what this process found out."""


@dataclass(frozen=True)
class Group:
    """Shards of cells that differ in their datasets alone: what a worker is handed."""

    shards: tuple[Shard, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.shards))

    def __len__(self) -> int:
        return sum(map(len, self.shards))


def run_group(cells: Sequence[Cell], resources: Resources, group: Group) -> list[list[SampleResult]]:
    """Compute the records of a group's shards as `attack_group` does."""
    return [list(attacked.results) for attacked in attack_group(cells, resources, group)]


def attack_group(cells: Sequence[Cell], resources: Resources, group: Group) -> list[Attacked]:
    """Attack the samples of a group's shards, in their order; raises what `attack_shards` raises.

    Where memory runs out, this group and the worker's next ones of the model are run with half the batch_size.
    """
    model = cells[group.shards[0].cell].model, resources.device
    batch_size = min(resources.batch_size, _fitting.get(model, resources.batch_size))
    results, fitted = with_fitting_batch_size(
        lambda fewer: attack_shards(cells, dataclasses.replace(resources, batch_size=fewer), group.shards), batch_size
    )
    if fitted < batch_size:
        _fitting[model] = fitted
    return results


def missing_groups(cells: Sequence[Cell], finished: Sequence[Finished], resources: Resources) -> list[Group]:
    """Return the groups that are not wholly on disk, without the shards of them that other groups wrote.

    What shares a pass may change the last bit of a number, so a group that was cut off is run again as a whole: then
    a run that was killed ends in the records of an unbroken one.
    """
    groups = []
    for group in packed_groups([*_all_shards(cells, resources)], cells, resources):
        parts = [(shard, _missing(shard, cells, finished, resources.shard_size)) for shard in group.shards]
        if any(missing for _, missing in parts):
            again = [missing or _written(shard, finished) for shard, missing in parts]
            groups.append(Group(tuple(shard for part in again for shard in part)))
    return groups


def packed_groups(shards: Sequence[Shard], cells: Sequence[Cell], resources: Resources) -> Iterator[Group]:
    """Yield groups that have all shards: one each, or several where the attack takes samples of several datasets."""
    alike: dict[int | tuple[str, str, Threat], list[Shard]] = {}
    for shard in shards:
        cell = cells[shard.cell]
        mixed = all(stage.mixes_datasets for stage in cell.attack.stages)
        alike.setdefault((cell.model, cell.attack.name, cell.threat) if mixed else shard.cell, []).append(shard)
    for key, some in alike.items():
        if isinstance(key, int):
            yield from (Group((shard,)) for shard in some)
        else:
            yield from _packed(some, resources)


def _all_shards(cells: Sequence[Cell], resources: Resources) -> Iterator[Shard]:
    nothing = Finished((), ())
    for number, cell in enumerate(cells):
        for start, stop in missing_ranges(len(cell), nothing, resources.shard_size):
            yield Shard(number, start, stop, cell.fingerprint)


def _packed(shards: Sequence[Shard], resources: Resources) -> list[Group]:
    """Deal shards out to groups of nearly equal size, at least one a worker, the largest shards first."""
    full = _SHARDS * max(resources.shard_size, resources.batch_size)
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
