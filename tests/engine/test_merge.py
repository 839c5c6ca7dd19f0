"""Test that merging accepts exactly the samples of the cell, in any pieces and any order."""

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.store import Piece, merge

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SHARED
@given(
    size=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    fault=st.sampled_from(["", "missing", "more than once", "not in the cell"]),
)
def test_merge_returns_all_samples_in_order_or_raises_user_error(
    make_cell: Callable[[int], Cell],
    make_results: Callable[[Cell], list[SampleResult]],
    size: int,
    seed: int,
    fault: str,
) -> None:
    choose = random.Random(seed)
    cell = make_cell(size)
    results = make_results(make_cell(size + 1))
    rows = results[:size]
    if fault == "missing":
        rows.pop(choose.randrange(size))
    elif fault == "more than once":
        rows.append(rows[choose.randrange(size)])
    elif fault == "not in the cell":
        rows.append(results[size])
    choose.shuffle(rows)
    cut = choose.randint(0, len(rows))
    pieces = [Piece(0, cut, tuple(rows[:cut])), Piece(cut, len(rows), tuple(rows[cut:]))]
    if fault:
        with pytest.raises(UserError, match=fault):
            merge(pieces, cell.samples.ids)
    else:
        assert merge(pieces, cell.samples.ids) == results[:size]
