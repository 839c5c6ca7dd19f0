"""Test groups: every sample is in one group, and the samples of a group have one model, attack and radius."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard_groups import missing_groups
from robustbench_vlm.engine.store import Finished, Piece

NOTHING = Finished((), ())
OWN = load_attack("fgsm")
"""An attack whose stages support samples of several datasets. The stages of the artificial attack do not."""


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shard_size=st.integers(1, 20),
    workers=st.integers(1, 4),
    own=st.booleans(),
)
def test_every_sample_is_in_one_group_of_one_threat(
    make_cell: Callable[..., Cell], sizes: list[int], shard_size: int, workers: int, own: bool
) -> None:
    cells = [
        make_cell(size, threat=Threat("Linf", Fraction(1 + number % 2, 255)), **({"attack": OWN} if own else {}))
        for number, size in enumerate(sizes)
    ]
    resources = Resources("cpu", workers, shard_size=shard_size)
    groups = missing_groups(cells, [NOTHING] * len(cells), resources)
    samples = [(shard.cell, n) for group in groups for shard in group.shards for n in range(shard.start, shard.stop)]
    assert sorted(samples) == [(number, n) for number, size in enumerate(sizes) for n in range(size)]
    for group in groups:
        assert len({cells[shard.cell].threat for shard in group.shards}) == 1
        assert own or len(group.shards) == 1
    kinds = {cell.threat for cell in cells}
    for threat in kinds:
        some = [group for group in groups if cells[group.shards[0].cell].threat == threat]
        # The first group of each worker is one shard of 8 samples or more, so that the first records are written soon.
        shards = [shard for group in some for shard in group.shards]
        enough = sum(len(shard) >= 8 for shard in shards)
        first = some[: min(workers, enough)] if own and len(shards) > 2 * workers else []
        assert all(len(group.shards) == 1 and len(group) >= 8 for group in first)
        loads = [len(group) for group in some[len(first) :]]
        assert max(loads) - min(loads) <= shard_size or not own


def test_an_interrupted_group_is_computed_again_as_a_whole(
    make_cell: Callable[..., Cell], make_results: Callable[..., list[object]]
) -> None:
    cells = [make_cell(8, attack=OWN), make_cell(8, attack=OWN, model="other.json")]
    resources = Resources("cpu", 1, shard_size=4)
    whole = missing_groups(cells, [NOTHING] * 2, resources)
    assert [len(group) for group in whole] == [8, 8]
    (first, second), rest = whole[0].shards, whole[1].shards
    pieces = [Piece(first.start, first.stop, tuple(make_results(cells[first.cell])[first.start : first.stop]))]
    found = [replace(NOTHING, pieces=tuple(pieces)) if number == first.cell else NOTHING for number in range(2)]
    again = missing_groups(cells, found, resources)
    assert [group.shards for group in again] == [(first, second), rest]
