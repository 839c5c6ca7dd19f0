"""Random numbers per sample: equal on every machine, uniform, and independent of other samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.random import bits, derive, integers, key_of, normal, sample_keys, signs, uniform

KEYS = sample_keys(0, "cifar10", [str(n) for n in range(200)])
ALMOST_NEVER = 1e-4


def test_the_numbers_equal_recorded_values() -> None:
    assert key_of(0, "cifar10", "7") == 3292607185517121992
    assert bits(KEYS[:1], 3, 3).tolist() == [[4903800577551721508, -3547184305387315664, -6251204424807739245]]
    assert uniform(KEYS[:1], 0, (3,)).tolist() == [[0.1738969087600708, 0.9983494281768799, 0.6244218945503235]]
    assert integers(KEYS[:1], 0, (5,), 10).tolist() == [[1, 9, 6, 8, 1]]


@given(order=st.permutations(range(20)), split=st.integers(1, 19))
def test_a_draw_depends_only_on_its_key(order: list[int], split: int) -> None:
    keys = KEYS[:20]
    for draw in (uniform, signs, normal):
        whole = draw(keys, 5, (3, 2))
        assert torch.equal(draw(keys[torch.tensor(order)], 5, (3, 2)), whole[torch.tensor(order)])
        assert torch.equal(torch.cat([draw(keys[:split], 5, (3, 2)), draw(keys[split:], 5, (3, 2))]), whole)
        # A longer draw starts with the numbers of a shorter draw.
        assert torch.equal(draw(keys, 5, (9,))[:, :6], whole.flatten(1))


def test_each_sample_may_have_its_own_counter() -> None:
    counters = torch.arange(200)
    together = bits(KEYS, counters, 4)
    assert all(torch.equal(together[n : n + 1], bits(KEYS[n : n + 1], n, 4)) for n in (0, 1, 100, 199))


def test_different_keys_counters_and_purposes_give_different_words() -> None:
    words = [
        bits(keys, counter, 20)
        for keys in (KEYS, derive(KEYS, "square"), derive(KEYS, "fab-t"))
        for counter in (0, 1, 2**40)
    ]
    flat = torch.cat(words).flatten()
    assert len(flat.unique()) == len(flat)
    assert len({*sample_keys(0, "cifar10", ["1"]).tolist(), *sample_keys(1, "cifar10", ["1"]).tolist(),
                *sample_keys(0, "cifar100", ["1"]).tolist()}) == 3  # fmt: skip


@pytest.mark.parametrize("keys", [KEYS, torch.arange(200), torch.arange(200) << 40])
@pytest.mark.parametrize("across", ["keys", "counters", "places"])
def test_uniform_numbers_are_uniform_across_keys_counters_and_positions(keys: torch.Tensor, across: str) -> None:
    if across == "keys":
        values = uniform(keys, 0, (50,))
    elif across == "counters":
        values = torch.cat([uniform(keys[:5], counter, (2,)) for counter in range(1000)])
    else:
        values = uniform(keys[:1], 0, (10_000,))
    assert ((values >= 0) & (values < 1)).all()
    observed = torch.histc(values.double(), 50, 0, 1).numpy()
    assert stats.chisquare(observed).pvalue > ALMOST_NEVER


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_neighbours_are_uncorrelated(lag: int) -> None:
    values = uniform(torch.arange(300), 0, (300,)).double() - 0.5
    for pairs in ((values[lag:] * values[:-lag]), (values[:, lag:] * values[:, :-lag])):
        assert abs(float(pairs.mean())) * 12 * pairs.numel() ** 0.5 < 4


@given(high=st.integers(1, 2**31))
def test_integers_are_below_their_bound(high: int) -> None:
    values = integers(KEYS, 0, (5,), high)
    assert ((values >= 0) & (values < high)).all()


@pytest.mark.parametrize("high", [2, 3, 10, 29])
def test_integers_are_uniform(high: int) -> None:
    counts = torch.bincount(integers(KEYS, 0, (100,), high).flatten(), minlength=high)
    assert stats.chisquare(counts.numpy()).pvalue > ALMOST_NEVER


def test_integers_may_have_a_bound_per_element() -> None:
    highs = torch.arange(1, 401).view(200, 2)
    values = integers(KEYS, 0, (2,), highs)
    assert (values < highs).all() and (values >= 0).all() and (values > highs / 2).any()


def test_signs_are_equally_likely() -> None:
    values = signs(KEYS, 0, (100,))
    assert set(values.unique().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((values > 0).sum()), values.numel()).pvalue > ALMOST_NEVER


def test_normal_numbers_have_the_moments_of_a_normal_distribution() -> None:
    values = normal(KEYS, 0, (500,)).double()
    count = values.numel()
    assert abs(float(values.mean())) < 4 / count**0.5
    assert float(values.var()) == pytest.approx(1, abs=6 / count**0.5)
    assert abs(float((values**3).mean())) < 12 / count**0.5
    assert 2.5 < float((values**4).mean()) < 3.2
    assert float(values.abs().max()) < 3.5


def test_the_global_generator_of_torch_is_not_changed() -> None:
    state = torch.random.get_rng_state()
    for draw in (uniform, signs, normal):
        draw(KEYS, 0, (3,))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert randomness.uniform(KEYS, 0, ()).shape == (200,)
