"""Test paired statistics against closed forms, exhaustive enumeration, and simulated coverage."""

import itertools
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustbench_vlm.comparison.statistics import MeanDifference, compare_means, holm, mcnemar, rank_ranges

VERDICTS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def split(pairs: list[tuple[bool, bool]]) -> tuple[list[bool], list[bool]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


@given(VERDICTS)
def test_mcnemar_is_the_two_sided_tail_of_a_binomial_distribution(pairs: list[tuple[bool, bool]]) -> None:
    found = mcnemar(*split(pairs))
    b, c = pairs.count((True, False)), pairs.count((False, True))
    expected = min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5))
    assert (found.only_first, found.only_second) == (b, c) and found.p == pytest.approx(expected)


def test_mcnemar_of_one_and_nine_samples() -> None:
    # The probability of at most one head of ten coins is (1 + 10) / 1024. The test is two-sided.
    found = mcnemar([True] * 1 + [False] * 9 + [True] * 5, [False] * 1 + [True] * 9 + [True] * 5)
    assert (found.only_first, found.only_second) == (1, 9) and found.p == pytest.approx(22 / 1024)


@given(VERDICTS)
def test_mcnemar_of_equal_models_has_p_one_and_swapping_keeps_p(pairs: list[tuple[bool, bool]]) -> None:
    first, second = split(pairs)
    assert mcnemar(first, first).p == 1
    assert mcnemar(first, second).p == mcnemar(second, first).p


def test_different_numbers_of_samples_raise_value_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="zip"):
        compare_means([[True]], [[True], [True]])


def test_the_bootstrap_equals_the_enumeration_of_all_draws() -> None:
    first, second = [[True, True, False], [True, False]], [[False, True, False], [False, False]]
    signs = [[int(a) - int(b) for a, b in zip(*each, strict=True)] for each in zip(first, second, strict=True)]
    every = [
        sum(sum(drawn) / len(drawn) for drawn in (one, two)) / 2
        for one in itertools.product(signs[0], repeat=3)
        for two in itertools.product(signs[1], repeat=2)
    ]
    found = compare_means(first, second, draws=40_000)
    at_most_zero = sum(value <= 0 for value in every) / len(every)
    assert found.difference == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.p == pytest.approx(2 * at_most_zero, abs=0.01)
    assert (found.low, found.high) == pytest.approx(
        tuple(numpy.quantile(every, (0.025, 0.975), method="inverted_cdf")), abs=1e-9
    )


@given(st.lists(VERDICTS, min_size=1, max_size=4))
def test_swapping_the_models_changes_only_the_signs(strata: list[list[tuple[bool, bool]]]) -> None:
    first, second = [split(pairs)[0] for pairs in strata], [split(pairs)[1] for pairs in strata]
    one, other = compare_means(first, second, draws=200), compare_means(second, first, draws=200)
    assert one.p == other.p and one.difference == -other.difference
    if any(pairs.count((True, False)) != pairs.count((False, True)) for pairs in strata):
        assert (one.low, one.high) == (-other.high, -other.low)
    assert one.low - 1e-9 <= one.high and 0 < one.p <= 1


@given(st.lists(VERDICTS, min_size=1, max_size=4))
def test_p_and_interval_agree_on_zero(strata: list[list[tuple[bool, bool]]]) -> None:
    found = compare_means([split(each)[0] for each in strata], [split(each)[1] for each in strata], draws=400)
    if found.p > 0.06:
        assert found.low <= 1e-9 and found.high >= -1e-9
    if found.p < 0.04:
        assert found.low >= -1e-9 or found.high <= 1e-9


def test_every_dataset_has_the_same_weight_in_the_mean() -> None:
    first, second = [[True] * 10, [False] * 1000], [[False] * 10, [False] * 1000]
    assert compare_means(first, second, draws=100).difference == pytest.approx(0.5)


def test_equal_models_have_p_one_and_p_is_never_zero() -> None:
    same = [[True, False, True]]
    assert compare_means(same, same) == MeanDifference(0, 0, 0, 1)
    assert compare_means([[True] * 50], [[False] * 50], draws=999).p == pytest.approx(2 / 1000)


def test_the_coverage_of_the_interval_is_about_95_percent_and_the_error_rate_of_p_about_5_percent() -> None:
    draw = random.Random(0)
    shares = ((0.7, 0.6), (0.3, 0.35), (0.5, 0.5))
    truth = sum(a - b for a, b in shares) / len(shares)
    held = wrong = 0
    for _ in range(400):
        first, second, equal = [], [], []
        for a, b in shares:
            # Half of the samples have the same random number for both models, so that the verdicts are correlated.
            values = [(draw.random(), draw.random()) for _ in range(60)]
            values = [(x, x if draw.random() < 0.5 else y) for x, y in values]
            first.append([x < a for x, _ in values])
            second.append([y < b for _, y in values])
            equal.append([y < a for _, y in values])
        found = compare_means(first, second, draws=600)
        held += found.low <= truth <= found.high
        wrong += compare_means(first, equal, draws=600).p <= 0.05
    assert 0.92 < held / 400 < 0.98
    assert 0.02 < wrong / 400 < 0.08


def test_holm_of_four_p_values() -> None:
    # Sorted: 0.005, 0.01, 0.03, 0.04. Adjusted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last equals the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.6]) == [1.0, 1.0]


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_the_same_hypotheses_as_the_step_down_procedure(values: list[float], alpha: float) -> None:
    adjusted = holm(values)
    rejected = set()
    for step, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        if values[index] * (len(values) - step) > alpha:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(adjusted) if value <= alpha} == rejected
    assert all(own <= value <= 1 for own, value in zip(values, adjusted, strict=True))


@given(P_VALUES, st.randoms())
def test_holm_keeps_the_order_of_the_p_values(values: list[float], chance: random.Random) -> None:
    order = list(range(len(values)))
    chance.shuffle(order)
    adjusted = holm(values)
    assert holm([values[index] for index in order]) == [adjusted[index] for index in order]


def groups_of(values: list[float], pairs: set[tuple[int, int]]) -> list[str]:
    return rank_ranges(values, lambda a, b: (min(a, b), max(a, b)) in pairs)


def test_rank_ranges_of_four_models() -> None:
    values = [0.5, 0.9, 0.4, 0.6]
    everything = set(itertools.combinations(range(4), 2))
    assert groups_of(values, everything) == ["3", "1", "4", "2"]
    assert groups_of(values, set()) == ["1-4"] * 4
    # Only the best model differs significantly from the remaining models.
    assert groups_of(values, {(0, 1), (1, 2), (1, 3)}) == ["2-4", "1", "2-4", "2-4"]
    assert groups_of([0.5], set()) == ["1"] and groups_of([], set()) == []


@st.composite
def standings(draw: st.DrawFn) -> tuple[list[float], set[tuple[int, int]]]:
    values = draw(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=7))
    pairs = [pair for pair in itertools.combinations(range(len(values)), 2) if values[pair[0]] != values[pair[1]]]
    return values, {pair for pair in pairs if draw(st.booleans())}


@given(standings(), st.randoms())
def test_rank_ranges_do_not_depend_on_the_order_of_the_models(
    standing: tuple[list[float], set[tuple[int, int]]], chance: random.Random
) -> None:
    values, pairs = standing
    order = list(range(len(values)))
    chance.shuffle(order)
    groups = groups_of(values, pairs)
    moved = rank_ranges(
        [values[index] for index in order],
        lambda a, b: (min(order[a], order[b]), max(order[a], order[b])) in pairs,
    )
    assert moved == [groups[index] for index in order]


@given(standings())
def test_the_rank_by_value_is_within_the_range(standing: tuple[list[float], set[tuple[int, int]]]) -> None:
    values, pairs = standing
    for value, group in zip(values, groups_of(values, pairs), strict=True):
        best, _, worst = group.partition("-")
        place = 1 + sum(other > value for other in values)
        assert 1 <= int(best) <= place <= int(worst or best) <= len(values)
