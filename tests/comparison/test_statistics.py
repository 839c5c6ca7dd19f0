"""Test paired statistics against closed forms, scipy, a bootstrap, and simulated coverage."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import bool_
from numpy.typing import NDArray
from scipy import stats

from robustbench_vlm.comparison import ranks as ranks_module
from robustbench_vlm.comparison.ranks import rank_models
from robustbench_vlm.comparison.statistics import (
    ALPHA,
    MeanDifferences,
    compare_means,
    discordant_counts,
    holm,
    mcnemar,
    rank_range,
    surely_different,
)

COUNTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=4)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def compared(strata: Sequence[tuple[int, int, int]]) -> tuple[float, float, float, float]:
    """Return difference, low, high and p for one pair. A stratum has only_first, only_second and the other samples."""
    first, second = (numpy.array([[each[side] for each in strata]]) for side in (0, 1))
    found = compare_means(first, second, [sum(each) for each in strata])
    return tuple(float(getattr(found, name)[0]) for name in ("difference", "low", "high", "p"))  # type: ignore[return-value]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.randoms(use_true_random=False))
def test_discordant_counts_count_sample_by_sample(rows: int, columns: int, n: int, draw: random.Random) -> None:
    first, second = ([[draw.random() < 0.5 for _ in range(n)] for _ in range(size)] for size in (rows, columns))
    only_first, only_second = discordant_counts(numpy.array(first), numpy.array(second))
    for (i, one), (j, other) in itertools.product(enumerate(first), enumerate(second)):
        assert only_first[i, j] == sum(a and not b for a, b in zip(one, other, strict=True))
        assert only_second[i, j] == sum(b and not a for a, b in zip(one, other, strict=True))


def test_different_numbers_of_samples_raise_value_error() -> None:
    with pytest.raises(ValueError, match="matmul"):
        discordant_counts(numpy.ones((1, 2), bool), numpy.ones((1, 3), bool))


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_test(b: int, c: int) -> None:
    found = mcnemar(numpy.array([b]), numpy.array([c]))[0]
    assert found == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0)


def test_mcnemar_of_one_and_nine_samples() -> None:
    # The probability of at most one head of ten coins is (1 + 10) / 1024. The test is two-sided.
    assert mcnemar(numpy.array([1]), numpy.array([9]))[0] == pytest.approx(22 / 1024)


@given(COUNTS)
def test_swapping_the_models_changes_only_the_signs(strata: list[tuple[int, int, int]]) -> None:
    difference, low, high, p = compared(strata)
    assert compared([(c, b, rest) for b, c, rest in strata]) == (-difference, -high, -low, p)
    assert low < difference < high and 0 <= p <= 1


@given(COUNTS)
def test_p_and_interval_agree_on_zero(strata: list[tuple[int, int, int]]) -> None:
    _, low, high, p = compared(strata)
    if abs(p - 0.05) > 1e-6:
        assert (p > 0.05) == (low < 0 < high)


def test_every_dataset_has_the_same_weight_in_the_mean() -> None:
    assert compared([(10, 0, 0), (0, 0, 1000)])[0] == pytest.approx(0.5)


def test_equal_models_have_p_one_and_an_interval_around_zero() -> None:
    difference, low, high, p = compared([(0, 0, 50), (0, 0, 50)])
    assert (difference, p) == (0, 1) and -0.03 < low < 0 < high < 0.03


def test_one_dataset_gives_the_textbook_interval_of_paired_shares() -> None:
    # 9 and 2 of 40 samples. The adjusted shares are 9.5 / 41 and 2.5 / 41.
    variance = (12 / 41 - (7 / 41) ** 2) / 39
    difference, low, high, p = compared([(9, 2, 29)])
    assert difference == pytest.approx(7 / 40)
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(variance))
    assert p == pytest.approx(2 * stats.norm.sf(7 / 40 / math.sqrt(variance)))


def test_the_interval_and_p_are_close_to_those_of_a_stratified_bootstrap() -> None:
    strata = [(20, 9, 171), (14, 15, 171), (30, 16, 154)]
    draw = numpy.random.default_rng(0)
    drawn = numpy.zeros(200_000)
    for b, c, rest in strata:
        counts = draw.multinomial(200, (b / 200, c / 200, rest / 200), size=len(drawn))
        drawn += (counts[:, 0] - counts[:, 1]) / 600
    difference, low, high, p = compared(strata)
    assert drawn.mean() == pytest.approx(difference, abs=1e-3)
    assert (low, high) == pytest.approx(tuple(numpy.quantile(drawn, (0.025, 0.975))), abs=2e-3)
    assert p == pytest.approx(2 * (drawn <= 0).mean(), rel=0.15)


def test_the_coverage_of_the_interval_is_about_95_percent_and_the_error_rate_of_p_about_5_percent() -> None:
    draw = numpy.random.default_rng(0)
    for n in (24, 200):
        shares = ((0.12, 0.1), (0.02, 0.05), (0.2, 0.2))
        counts = numpy.stack([draw.multinomial(n, (b, c, 1 - b - c), size=20_000) for b, c in shares], axis=1)
        truth = sum(b - c for b, c in shares) / 3
        found = compare_means(counts[..., 0], counts[..., 1], [n] * 3)
        assert 0.945 < ((found.low <= truth) & (truth <= found.high)).mean() < 0.965
        equal = draw.multinomial(n, (0.1, 0.1, 0.8), size=(20_000, 3))
        p = compare_means(equal[..., 0], equal[..., 1], [n] * 3).p
        assert 0.03 < (p <= 0.05).mean() < 0.06


def test_holm_of_four_p_values() -> None:
    # Sorted: 0.005, 0.01, 0.03, 0.04. Adjusted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the last equals the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == [] and holm([0.7, 0.6]).tolist() == [1.0, 1.0]


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
    assert holm([values[index] for index in order]).tolist() == [adjusted[index] for index in order]


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 5))
def test_the_rank_range_has_room_for_the_better_and_the_worse_models(better: int, worse: int, same: int) -> None:
    best, _, worst = rank_range(better, worse, better + worse + same).partition("-")
    assert int(best) == better + 1 and int(worst or best) == better + same


@given(COUNTS, st.floats(1e-9, 0.9))
def test_a_surely_significant_difference_is_significant(strata: list[tuple[int, int, int]], p: float) -> None:
    limit = surely_different([sum(each) for each in strata], p)
    difference, _, _, found = compared(strata)
    if abs(difference) >= limit:
        assert found <= p * (1 + 1e-9)


def made_up_verdicts(models: int, sizes: Sequence[int], spread: float, seed: int) -> list[NDArray[bool_]]:
    draw = numpy.random.default_rng(seed)
    skill = draw.uniform(0.5 - spread / 2, 0.5 + spread / 2, size=(models, 1))
    return [draw.random((models, n)) < (0.7 * skill + 0.3 * draw.random((1, n))) for n in sizes]


def ranks_from_all_pairs(verdicts: Sequence[NDArray[bool_]]) -> list[str]:
    """Return the rank ranges from a test of every pair of models, in plain Python."""
    count = len(verdicts[0])
    pairs = list(itertools.combinations(range(count), 2))
    only = [[discordant_counts(each[[i]], each[[j]]) for each in verdicts] for i, j in pairs]
    first, second = (numpy.array([[counts[side][0, 0] for counts in each] for each in only]) for side in (0, 1))
    found = compare_means(first, second, [each.shape[1] for each in verdicts])
    better, worse = [0] * count, [0] * count
    for pair, difference, p in zip(pairs, found.difference, holm(found.p), strict=True):
        if p <= ALPHA:
            better[pair[1] if difference > 0 else pair[0]] += 1
            worse[pair[0] if difference > 0 else pair[1]] += 1
    return [rank_range(*each, count) for each in zip(better, worse, strict=True)]


@settings(max_examples=15)
@given(
    st.integers(2, 12),
    st.sampled_from([(40,), (30, 50), (60, 60, 20)]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
def test_ranks_from_near_pairs_equal_those_from_all_pairs(
    models: int, sizes: tuple[int, ...], spread: float, seed: int
) -> None:
    verdicts = made_up_verdicts(models, sizes, spread, seed)
    assert list(rank_models(verdicts).ranks) == ranks_from_all_pairs(verdicts)


def test_pairs_with_distant_means_are_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = made_up_verdicts(150, (200,) * 13, 0.9, 0)
    tested = []

    def counted(*args: object) -> MeanDifferences:
        found = compare_means(*args)  # type: ignore[arg-type]
        tested.append(len(found.p))
        return found

    monkeypatch.setattr(ranks_module, "compare_means", counted)
    found = rank_models(verdicts)
    assert sum(tested) == found.tested < 0.35 * 150 * 149 / 2
    means = numpy.mean([each.mean(axis=1) for each in verdicts], axis=0)
    assert found.ranks[int(means.argmin())].endswith("150") and found.ranks[int(means.argmax())].startswith("1")


@settings(max_examples=10)
@given(st.integers(0, 99), st.randoms())
def test_ranks_do_not_depend_on_the_order_of_the_models(seed: int, chance: random.Random) -> None:
    verdicts = made_up_verdicts(9, (40, 30), 0.6, seed)
    order = list(range(9))
    chance.shuffle(order)
    ranks = rank_models(verdicts).ranks
    assert rank_models([each[order] for each in verdicts]).ranks == tuple(ranks[index] for index in order)


def test_one_model_has_rank_one_and_equal_models_share_all_ranks() -> None:
    same = numpy.ones((4, 20), bool)
    assert rank_models([same[:1]]).ranks == ("1",) and rank_models([same]).ranks == ("1-4",) * 4
