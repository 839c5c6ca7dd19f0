"""Tests of Square Attack: candidates within the threat, the schedule, and several queries in one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import halving_threat, network, samples, threat_of

from robustbench_vlm.attacks.batching import Rows
from robustbench_vlm.attacks.square import Square, square
from robustbench_vlm.attacks.square_proposals import PROPOSALS, CleanImages
from robustbench_vlm.core.classifier_interface import as_classifier

EPS = {"Linf": 0.1, "L2": 0.9}


def rows_of(count: int = 16) -> Rows:
    model = network("linear", 3).double()
    batch = samples(model, 3, threat_of("Linf", 0.1), count)
    zeros = torch.zeros_like(batch.labels)
    no = zeros.bool()
    about = (zeros, zeros, batch.images, batch.labels, batch.keys, batch.images)
    return Rows(*about, zeros.double(), no, no, zeros, zeros, zeros, zeros)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(query=st.integers(1, 10_000), sides=st.lists(st.integers(3, 8), min_size=16, max_size=16))
def test_candidates_are_within_the_threat_and_change_only_their_squares(
    norm: str, query: int, sides: list[int]
) -> None:
    rows, eps, proposals = rows_of(), EPS[norm], PROPOSALS[norm]
    best = proposals.first(rows, eps)
    side = torch.tensor(sides)
    queries = torch.full((16,), query)
    candidate = proposals.changed(rows, eps, best, queries, side)
    delta = (candidate - rows.images).flatten(1)
    length = delta.abs().amax(dim=1) if norm == "Linf" else delta.norm(dim=1)
    assert torch.allclose(length, torch.full_like(length, eps))
    assert ((candidate >= 0) & (candidate <= 1)).all()
    if norm == "Linf":
        for changed, width in zip((candidate != best).any(dim=1), sides, strict=True):
            places = changed.nonzero()
            if len(places):
                assert ((places.amax(dim=0) - places.amin(dim=0)) < width).all()


def test_squares_cover_every_pixel() -> None:
    rows = rows_of()
    best = rows.images.clone()
    touched = torch.zeros(8, 8, dtype=torch.bool)
    for query in range(1, 60):
        candidate = PROPOSALS["Linf"].changed(rows, 0.1, best, torch.full((16,), query), torch.full((16,), 3))
        touched |= (candidate != best).any(dim=1).any(dim=0)
    assert touched.all()


def test_candidates_do_not_depend_on_other_rows_with_different_square_sizes() -> None:
    rows, side = rows_of(), torch.tensor([3, 5] * 8)
    for norm, proposals in PROPOSALS.items():
        best, query = proposals.first(rows, EPS[norm]), torch.arange(1, 17)
        together = proposals.changed(rows, EPS[norm], best, query, side)
        for n in range(16):
            one = Rows(*(value[n : n + 1] for value in vars(rows).values()))
            alone = proposals.changed(one, EPS[norm], best[n : n + 1], query[n : n + 1], side[n : n + 1])
            assert torch.allclose(alone[0], together[n])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_several_copies_of_a_sample_are_those_of_a_batch_with_repeated_samples(norm: str) -> None:
    rows, eps, proposals = rows_of(), EPS[norm], PROPOSALS[norm]
    row = torch.tensor([3, 0, 3, 15, 7, 0])
    query, side = torch.arange(1, 7), torch.tensor([3, 5, 5, 3, 7, 3])
    best = proposals.first(rows, eps)
    repeated = CleanImages(rows.images[row], rows.keys[row])
    copies = proposals.changed(CleanImages(rows.images, rows.keys), eps, best, query, side, row)
    assert torch.equal(copies, proposals.changed(repeated, eps, best[row], query, side))
    assert torch.equal(best, proposals.first(rows, eps))


def test_the_schedule_of_square_sides_is_that_of_pyautoattack() -> None:
    from pyautoattack.square import SquareAttack

    theirs = SquareAttack(None, p_init=0.8, n_queries=5000, eps=0.1, resc_schedule=False)
    images = torch.zeros(1, 3, 32, 32)
    for query in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999):
        share = Square(threat=threat_of("Linf", 0.1)).share_at(torch.tensor([query + 1]))
        assert float(share) == pytest.approx(theirs.p_selection(query))
        expected = max(round((theirs.p_selection(query) * 32 * 32) ** 0.5), 1)
        assert int(PROPOSALS["Linf"].sides(share, *images.shape[2:])) == expected


@settings(max_examples=10, deadline=None, derandomize=True)
@given(norm=st.sampled_from(["Linf", "L2"]), count=st.integers(1, 6), seed=st.integers(0, 3))
def test_several_queries_in_one_pass_give_the_same_search(norm: str, count: int, seed: int) -> None:
    model = network("conv", 6, seed).double()
    batch = samples(model, 6, halving_threat(model, 6, norm, times=1.5), count)
    asked: list[int] = []

    def watched(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return model(images)

    single = square(as_classifier(watched), batch, batch_size=count, queries=150, p_init=0.8)
    one_by_one, asked[:] = len(asked), []
    ahead = square(as_classifier(watched), batch, batch_size=8 * count, queries=150, p_init=0.8)
    assert torch.allclose(ahead.adversarial, single.adversarial, atol=1e-9)
    assert torch.equal(ahead.forward, single.forward)
    assert max(asked) <= 8 * count
    # Several queries in one pass save forward passes, unless the first queries already break the samples.
    assert len(asked) < one_by_one / 2 or one_by_one < 20
