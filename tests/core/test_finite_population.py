"""Intervals for samples without replacement, against enumeration of all sequences of draws."""

from collections.abc import Sequence
from functools import cache

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.core.finite_population import Population, share_bounds


def population_of(sizes: Sequence[int], weights: Sequence[float] | None = None) -> Population:
    return Population(numpy.array(sizes), numpy.array(weights or [1.0] * len(sizes), dtype=float))


def bounds(population: Population, drawn: Sequence[int], failed: Sequence[int]) -> tuple[float, float]:
    low, high = share_bounds(population, drawn, failed)
    return float(low), float(high)


def chance_of_a_miss(population: Population, truth: Sequence[int], order: Sequence[int]) -> float:
    """Return the probability that the interval misses the true sum after at least one draw.

    `order` lists the strata in the order of the draws. All sequences of outcomes are followed.
    """
    total = float((population.weights * numpy.array(truth)).sum())

    @cache
    def misses(failed: tuple[int, ...], step: int) -> float:
        drawn = [order[:step].count(h) for h in range(len(truth))]
        low, high = bounds(population, drawn, failed)
        if not low - 1e-9 <= total <= high + 1e-9:
            return 1.0
        if step == len(order):
            return 0.0
        h = order[step]
        left, bad = population.sizes[h] - drawn[h], truth[h] - failed[h]
        more = tuple(count + (stratum == h) for stratum, count in enumerate(failed))
        chance = bad / left
        return (chance * misses(more, step + 1) if bad else 0.0) + (
            (1 - chance) * misses(failed, step + 1) if bad < left else 0.0
        )

    return misses((0,) * len(truth), 0)


@pytest.mark.parametrize("size", [1, 5, 14])
def test_one_stratum_is_covered_at_all_times(size: int) -> None:
    population = population_of([size])
    for truth in range(size + 1):
        assert chance_of_a_miss(population, [truth], [0] * size) <= 0.05


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.5]])
def test_two_strata_are_covered_at_all_times(weights: list[float]) -> None:
    population = population_of([6, 4], weights)
    order = [0, 1, 0, 0, 1, 0, 1, 0, 0, 1]
    for truth in [(0, 0), (1, 0), (0, 4), (3, 2), (6, 4), (6, 0)]:
        assert chance_of_a_miss(population, truth, order) <= 0.05


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_bounds_agree_with_a_search_over_all_counts(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3))
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.3]), min_size=len(sizes), max_size=len(sizes)))
    drawn = [data.draw(st.integers(0, size)) for size in sizes]
    failed = [data.draw(st.integers(0, n)) for n in drawn]
    population = population_of(sizes, weights)
    low, high = bounds(population, drawn, failed)
    possible = search(population, drawn, failed)
    step = max(weights)
    assert min(possible) - step <= low <= min(possible) + 1e-9
    assert max(possible) - 1e-9 <= high <= max(possible) + step


def search(population: Population, drawn: Sequence[int], failed: Sequence[int]) -> list[float]:
    """Return the sums of all failure counts in the region, from the definition with plain fractions."""
    from itertools import product
    from math import comb, exp

    from robustbench_vlm.core.finite_population import _log_mixture

    mixture = exp(float(_log_mixture(numpy.array(sum(drawn)), numpy.array(sum(failed)))))
    found = []
    for counts in product(*(range(size + 1) for size in population.sizes)):
        likelihood = 1.0
        for size, n, k, total in zip(population.sizes, drawn, failed, counts, strict=True):
            # The chance of one sequence with k failures among n draws.
            likelihood *= comb(total, k) * comb(int(size) - total, n - k) / comb(int(size), n) / comb(n, k)
        if likelihood >= 0.05 * mixture * (1 - 1e-9):
            found.append(float((population.weights * numpy.array(counts)).sum()))
    return found


def test_no_draw_and_all_draws() -> None:
    population = population_of([10, 0, 5])
    assert bounds(population, [0, 0, 0], [0, 0, 0]) == (0, 15)
    assert bounds(population, [10, 0, 5], [2, 0, 1]) == (3, 3)


def test_more_draws_without_a_failure_lower_the_upper_bound() -> None:
    population = population_of([110] * 13)
    highs = [bounds(population, [n] * 13, [0] * 13)[1] for n in range(0, 40, 4)]
    assert highs == sorted(highs, reverse=True)
    # The rule of three: about 3 / n of the items, plus the price of the mixture.
    assert highs[2] / 1430 < 4.3 / (8 * 13)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Population(numpy.array([1, 2]), numpy.array([1.0]))
