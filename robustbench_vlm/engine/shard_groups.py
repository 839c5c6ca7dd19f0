"""Groups of shards: the packing of the shards of a run into jobs of nearly equal size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.store import Finished, missing_ranges

_FIRST = 8
"""Least number of samples in the first group of a worker. Fewer samples would fill no batch, and their time would not
predict the time of the others."""
_SHARDS = 2
"""A group of shards has this many times the samples of a shard or of a batch, whichever is larger. Even if the attack
soon succeeds on half of the samples, the other half still fills a batch.
"""


@dataclass(frozen=True)
class ShardGroup:
    """The job of a worker: shards of one or several cells. The cells may differ only in their datasets.

    The shards of small cells are attacked together, so that batches are full.
    """

    shards: tuple[Shard, ...]

    def __str__(self) -> str:
        return " and ".join(map(str, self.shards))

    def __len__(self) -> int:
        return sum(map(len, self.shards))


def missing_groups(cells: Sequence[Cell], finished: Sequence[Finished], resources: Resources) -> list[ShardGroup]:
    """Return the groups of shards that are not complete.

    The samples of a group share forward passes, and a sample may change the last bit of the logits of another sample.
    An incomplete group is therefore computed again as a whole. Its records are then equal to the records of a run
    without interruption.

    After a change of the shard size, the existing files have other ranges of samples. A sample with a record in such a
    file is not computed again.
    """
    groups = []
    for group in packed_groups([*_all_shards(cells, resources)], cells, resources):
        parts = [(shard, _missing(shard, cells, finished, resources.shard_size)) for shard in group.shards]
        if any(missing for _, missing in parts):
            again = [missing or _written(shard, finished) for shard, missing in parts]
            groups.append(ShardGroup(tuple(shard for part in again for shard in part)))
    return groups


def packed_groups(shards: Sequence[Shard], cells: Sequence[Cell], resources: Resources) -> Iterator[ShardGroup]:
    """Distribute shards over groups.

    Some attacks do not support several datasets at once. For such an attack, each group has one shard.
    """
    alike: dict[int | tuple[str, str, Threat], list[Shard]] = {}
    for shard in shards:
        cell = cells[shard.cell]
        mixed = all(stage.mixes_datasets for stage in cell.attack.stages)
        alike.setdefault((cell.model, cell.attack.name, cell.threat) if mixed else shard.cell, []).append(shard)
    for key, some in alike.items():
        if isinstance(key, int):
            yield from (ShardGroup((shard,)) for shard in some)
        else:
            yield from _packed(some, resources)


def _all_shards(cells: Sequence[Cell], resources: Resources) -> Iterator[Shard]:
    nothing = Finished((), ())
    for number, cell in enumerate(cells):
        for start, stop in missing_ranges(len(cell), nothing, resources.shard_size):
            yield Shard(number, start, stop, cell.fingerprint)


def _packed(shards: Sequence[Shard], resources: Resources) -> list[ShardGroup]:
    """Distribute shards over groups of nearly equal size, with a group for each worker if possible.

    The first group of each worker has only one shard, the smallest with at least `_FIRST` samples. Its records are
    therefore written soon, and are kept if the run is then interrupted.
    """
    ordered = sorted(shards, key=len)
    enough = [shard for shard in ordered if len(shard) >= _FIRST]
    first = enough[: resources.workers] if len(shards) > 2 * resources.workers else []
    rest = [shard for shard in ordered if shard not in first]
    full = _SHARDS * max(resources.shard_size, resources.batch_size)
    count = min(len(rest), max(-(-sum(map(len, rest)) // full), resources.workers))
    groups: list[list[Shard]] = [[shard] for shard in first] + [[] for _ in range(count)]
    for shard in reversed(rest):
        min(groups[len(first) :], key=lambda group: sum(map(len, group))).append(shard)
    return [ShardGroup(tuple(sorted(group, key=lambda shard: (shard.cell, shard.start)))) for group in groups]


def _missing(shard: Shard, cells: Sequence[Cell], finished: Sequence[Finished], shard_size: int) -> list[Shard]:
    """Return the ranges of samples in a shard that still lack records, as shards."""
    ranges = missing_ranges(len(cells[shard.cell]), finished[shard.cell], shard_size)
    cut = [(max(start, shard.start), min(stop, shard.stop)) for start, stop in ranges]
    return [Shard(shard.cell, start, stop, shard.fingerprint) for start, stop in cut if start < stop]


def _written(shard: Shard, finished: Sequence[Finished]) -> list[Shard]:
    """Return [shard] if a file has exactly the samples of the shard. Return [] if there is no such file."""
    pieces = finished[shard.cell].pieces
    return [shard] if any((piece.start, piece.stop) == (shard.start, shard.stop) for piece in pieces) else []
