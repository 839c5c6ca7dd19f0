"""Protocols: which samples, which iterate, which prompt."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.attacks.stage import Attack, Stage
from robustbench_vlm.datasets.rendered import SHAPES
from robustbench_vlm.protocols import MINI, MINI_QUICK
from robustbench_vlm.records import fingerprint


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200), st.integers(1, 60), st.randoms())
@settings(deadline=None)
def test_a_smaller_selection_begins_a_larger_one_whatever_the_order(labels, count, random) -> None:
    ids = [f"{number:04d}" for number in range(len(labels))]
    small = dataclasses.replace(MINI, samples=count).select(ids, labels)
    large = dataclasses.replace(MINI, samples=None).select(ids, labels)
    assert large[: len(small)] == small and sorted(large) == list(range(len(ids)))
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = dataclasses.replace(MINI, samples=count).select(
        [ids[index] for index in order], [labels[index] for index in order]
    )
    assert [order[index] for index in shuffled] == small


@given(st.integers(1, 100))
@settings(deadline=None, max_examples=20)
def test_classes_take_turns(count: int) -> None:
    labels = [number % 7 for number in range(700)]
    chosen = dataclasses.replace(MINI, samples=count).select([str(number) for number in range(700)], labels)
    counts = [sum(labels[index] == label for index in chosen) for label in range(7)]
    assert max(counts) - min(counts) <= 1


def test_the_quick_protocol_is_the_beginning_of_the_whole_one() -> None:
    source = SHAPES.open()
    whole, quick = MINI.select(source.ids, source.labels), MINI_QUICK.select(source.ids, source.labels)
    assert len(whole) >= 200 and whole[: len(quick)] == quick


def test_the_protocol_decides_which_iterate_counts_and_which_prompt() -> None:
    attack = Attack("a", (Stage("pgd", "m:f", {"keep": "best", "steps": 2}), Stage("square", "m:f", {})), "")
    final = dataclasses.replace(MINI, keep="final", prompts={"shapes": "one {}"})
    adapted = final.adapt_attack(attack)
    assert [dict(stage.parameters) for stage in adapted.stages] == [{"keep": "final", "steps": 2}, {}]
    assert final.adapt_dataset(SHAPES).prompts[0] == "one circle"
    assert fingerprint(final) != fingerprint(MINI)
