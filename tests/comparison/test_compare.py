"""Test comparisons of artificial models: common samples, accuracies, tests, ranks and notes."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_results import evidence, samples

from robustbench_vlm.comparison.align import ModelRecords
from robustbench_vlm.comparison.compare import Comparison, compare
from robustbench_vlm.comparison.statistics import ALPHA, compare_means, holm, mcnemar
from robustbench_vlm.comparison.tables import notes
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import mean_interval, wilson
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.tracks import MINI, ZEROSHOT15, Track

ROBUST, BROKEN = [""] * 60, ["apgd-ce"] * 60
HALF = [*[""] * 30, *["apgd-ce"] * 20, *["clean"] * 10]
NEARLY_HALF = ["apgd-ce", *HALF[1:]]
VERDICTS = st.lists(st.sampled_from(["", "clean", "apgd-ce", "square"]), min_size=12, max_size=12)


def source(name: str, *found: CellRecords) -> ModelRecords:
    return ModelRecords(name, found)


def of(
    track: Track = MINI, *, datasets: Sequence[str] = ("shapes", "colours"), **verdicts: Sequence[str]
) -> Comparison:
    """Compare models. Each model has the given verdicts on every dataset."""
    sources = [
        source(name, *(evidence(name, broken, dataset, eps=str(track.standard_eps)) for dataset in datasets))
        for name, broken in verdicts.items()
    ]
    return compare(sources, track)


def test_accuracies_and_intervals_are_those_of_the_samples() -> None:
    model = of(half=HALF, good=ROBUST).models[0]
    robust, clean = model.datasets["shapes"].robust, model.datasets["shapes"].clean
    assert (robust.value, clean.value, robust.n) == (30 / 60, 50 / 60, 60)
    assert (robust.low, robust.high) == wilson(30, 60) and (clean.low, clean.high) == wilson(50, 60)
    assert model.robust.value == 0.5 and model.robust.n == 120
    assert (model.robust.low, model.robust.high) == mean_interval([0.5, 0.5], [60, 60])


def test_broken_by_counts_the_samples_of_all_datasets() -> None:
    model = of(one=[*["square"] * 2, *["apgd-ce"] * 3, "clean", ""]).models[0]
    assert list(model.broken_by.items()) == [("clean", 2), ("apgd-ce", 6), ("square", 4), ("robust", 2)]


def test_ranks_and_ties_with_the_best_follow_the_tests() -> None:
    found = of(good=HALF, alike=NEARLY_HALF, bad=["apgd-ce"] * 50 + ["clean"] * 10)
    assert [model.rank for model in found.models] == ["1-2", "1-2", "3"]
    assert [model.clean_rank for model in found.models] == ["1-3"] * 3
    assert found.best("robust") == found.best("robust", "shapes") == ("good", "alike")
    assert found.best("clean") == ("good", "alike", "bad")


def test_each_pair_has_the_tests_of_its_verdicts_adjusted_within_the_measure() -> None:
    found = of(good=HALF, alike=NEARLY_HALF, bad=BROKEN)
    right = {"good": [v == "" for v in HALF], "alike": [v == "" for v in NEARLY_HALF], "bad": [False] * 60}
    pairs = [pair for pair in found.pairs if pair.measure == "robust"]
    assert [(pair.first, pair.second) for pair in pairs] == [("good", "alike"), ("good", "bad"), ("alike", "bad")]
    verdicts = [zip(right[p.first], right[p.second], strict=True) for p in pairs]
    counts = numpy.array([[(a > b, b > a) for a, b in each] for each in verdicts]).sum(axis=1)
    first, second = (numpy.stack([counts[:, side]] * 2, axis=1) for side in (0, 1))
    means = compare_means(first, second, [60, 60])
    columns = zip(means.difference, means.low, means.high, means.p, holm(means.p), strict=True)
    assert [(p.difference, p.low, p.high, p.p, p.p_holm) for p in pairs] == list(columns)
    of_sets = [test for p in pairs for test in p.datasets.values()]
    p = mcnemar(first, second).ravel()
    tests = zip(first.ravel(), second.ravel(), p, holm(p), strict=True)
    assert [(t.only_first, t.only_second, t.p, t.p_holm) for t in of_sets] == list(tests)


def test_clean_pairs_compare_the_predictions_without_an_attack() -> None:
    found = of(first=["", "square", "clean", "clean"], second=["", "clean", "clean", "square"])
    clean = next(pair for pair in found.pairs if pair.measure == "clean")
    robust = next(pair for pair in found.pairs if pair.measure == "robust")
    assert [(each.only_first, each.only_second) for each in clean.datasets.values()] == [(1, 1)] * 2
    assert [(each.only_first, each.only_second) for each in robust.datasets.values()] == [(0, 0)] * 2
    assert of(first=["square"] * 4, second=["clean"] * 4).pairs[0].difference == 1


@settings(max_examples=10)
@given(st.permutations(["a", "b", "c"]), st.tuples(VERDICTS, VERDICTS, VERDICTS))
def test_the_order_of_the_models_changes_no_rank(order: list[str], verdicts: tuple[list[str], ...]) -> None:
    models = dict(zip("abc", verdicts, strict=True))
    one, other = of(**models), of(**{name: models[name] for name in order})
    ranks = [{model.name: (model.rank, model.clean_rank) for model in found.models} for found in (one, other)]
    assert ranks[0] == ranks[1]
    for measure, rank in (("robust", "rank"), ("clean", "clean_rank")):
        first = {model.name for model in one.models if getattr(model, rank).partition("-")[0] == "1"}
        assert set(one.best(measure)) == set(other.best(measure)) == first


def test_only_common_samples_are_compared_and_a_note_has_their_number() -> None:
    ours = evidence("ours", ["", "", "square", "clean"])
    theirs = evidence("theirs", [], results=samples(["", "square", "clean", "clean"], first=2)[::-1])
    found = compare([source("ours", ours), source("theirs", theirs)], MINI)
    assert found.samples == {"shapes": 2}
    assert [model.robust.value for model in found.models] == [0, 0.5]
    assert [model.broken_by for model in found.models] == [
        {"clean": 1, "apgd-ce": 0, "square": 1, "robust": 0},
        {"clean": 0, "apgd-ce": 0, "square": 1, "robust": 1},
    ]
    assert found.notes == (
        "all models have records of 2 samples, and only these are compared: ours has 4, theirs has 4",
    )


def test_a_sample_with_different_pixels_is_not_a_common_sample() -> None:
    results = list(samples(["", "", ""]))
    results[1] = replace(results[1], image_sha256="f" * 64)
    ours, theirs = evidence("ours", ["", "", ""]), evidence("theirs", [], results=results)
    found = compare([source("ours", ours), source("theirs", theirs)], MINI)
    assert found.samples == {"shapes": 2}


def test_models_without_a_common_sample_raise_user_error() -> None:
    other = evidence("theirs", [], results=samples(["", ""], first=7))
    with pytest.raises(UserError, match="have no sample in common"):
        compare([source("ours", evidence("ours", ["", ""])), source("theirs", other)], MINI)


def test_a_dataset_without_records_of_one_model_is_left_out() -> None:
    ours = source("ours", evidence("ours", HALF), evidence("ours", HALF, "colours"))
    found = compare([ours, source("theirs", evidence("theirs", HALF))], MINI)
    assert found.datasets == ("shapes",)
    assert "datasets left out, because not all models have records of the same samples: colours" in found.notes


def test_datasets_are_in_the_order_of_the_track_and_training_datasets_are_not_in_the_mean() -> None:
    found = of(ZEROSHOT15, datasets=("imagenet", "other", "dtd", "cifar10"), one=HALF, two=BROKEN)
    assert found.datasets == ("cifar10", "dtd", "imagenet", "other")
    assert found.in_mean == ("cifar10", "dtd", "other") and found.models[0].robust.n == 180
    alone = of(ZEROSHOT15, datasets=("imagenet",), one=HALF, two=BROKEN)
    assert alone.in_mean == ("imagenet",) and "were trained" in alone.notes[0]


def test_notes_name_different_protocols_prompts_and_class_names() -> None:
    ours = source("ours", evidence("ours", HALF))
    theirs = evidence("theirs", HALF, protocol="tecoa-2023/1", prompts=["This is a a", "This is a b", "This is a c"])
    notes = compare([ours, source("theirs", theirs)], MINI).notes
    assert "different protocols: ours mini/1, theirs tecoa-2023/1" in notes
    assert any(note.startswith("the models have different prompts on shapes") for note in notes)
    weaker = evidence("theirs", HALF, attack="autoattack", classes=["x", "b", "c"])
    assert any("class names" in note for note in compare([ours, source("theirs", weaker)], MINI).notes)
    assert compare([ours, source("theirs", evidence("theirs", HALF))], MINI).notes == ()


def test_records_of_the_shared_protocol_and_of_the_latest_command_are_used() -> None:
    quick, whole = evidence("ours", HALF[:8], protocol="mini-quick/1"), evidence("ours", BROKEN)
    again = evidence("ours", HALF, weights="1" * 64)
    theirs = source("theirs", evidence("theirs", HALF[:8], protocol="mini-quick/1"))
    assert compare([source("ours", quick, whole), theirs], MINI).models[0].protocol == "mini-quick/1"
    found = compare([source("ours", quick, whole, again)], MINI)
    assert (found.models[0].protocol, found.models[0].robust.value) == ("mini/1", 0.5)
    assert [note for note in found.notes if "ours has records of several versions of shapes" in note] == [*found.notes]


def test_a_note_names_a_model_with_records_of_different_weights() -> None:
    ours = source("ours", evidence("ours", HALF), evidence("ours", HALF, "colours", weights="1" * 64))
    assert any("ours has records of different weights" in note for note in compare([ours], MINI).notes)


def test_an_error_for_missing_records_lists_the_existing_ones() -> None:
    ours = source("ours", evidence("ours", HALF, attack="cw"), evidence("ours", HALF, attack="pgd-20"))
    theirs = source("theirs", evidence("theirs", HALF, attack="pgd-20", eps="1/51"))
    with pytest.raises(
        UserError, match=r"ours and theirs do not have records of autoattack at Linf 5/255. .*: pgd-20 at"
    ):
        compare([ours, theirs], MINI)
    whole = source("whole", evidence("whole", HALF))
    with pytest.raises(
        UserError, match=r"^ours does not have records .*: cw at Linf 5/255; pgd-20 at Linf 5/255\. Give"
    ):
        compare([ours, whole], MINI)
    with pytest.raises(UserError, match=r"autoattack at Linf 5/255\. Give one of these"):
        compare([whole], MINI, eps=Fraction(1, 255))


def test_the_curve_has_all_radii_with_records_of_all_samples_of_the_mean() -> None:
    found = [
        evidence("ours", broken, name, eps=eps)
        for name in ("shapes", "colours")
        for eps, broken in (("5/255", HALF), ("10/255", BROKEN), ("2.5/255", NEARLY_HALF))
    ]
    partly = evidence("ours", HALF, eps="1/255")
    fewer = [evidence("ours", HALF[:20], name, eps="2/255") for name in ("shapes", "colours")]
    ball = [evidence("ours", ROBUST, name, eps="1", norm="L2") for name in ("shapes", "colours")]
    curve = compare([source("ours", *found, partly, *fewer, *ball)], MINI).models[0].curve
    assert [(point.eps, point.robust.value) for point in curve] == [
        ("2.5/255", 29 / 60),
        ("5/255", 0.5),
        ("10/255", 0.0),
    ]


def test_the_comparison_has_the_warnings_of_the_scores() -> None:
    found = compare([source("ours", evidence("ours", HALF, warnings=("collapsed", "unreadable:3")))], MINI)
    assert found.models[0].datasets["shapes"].warnings == ("collapsed", "unreadable:3")


@pytest.mark.parametrize(("samples", "is_noted"), [(6, True), (8, False)])
def test_a_note_says_that_no_difference_can_be_significant(samples: int, is_noted: bool) -> None:
    found = of(first=[""] * samples, second=["apgd-ce"] * samples)
    assert found.best("robust", "shapes") == (("first", "second") if is_noted else ("first",))
    assert any("too few for a significant difference" in note for note in notes(found)) == is_noted


@pytest.mark.parametrize(("samples", "bound"), [(8, "75.0"), (24, "25.0"), (25, "")])
def test_a_note_gives_the_difference_below_which_a_small_sample_distinguishes_no_models(
    samples: int, bound: str
) -> None:
    same = [""] * (samples - 5)
    found = of(first=[""] * samples, second=["apgd-ce"] * 5 + same)
    assert found.best("robust", "shapes") == ("first", "second")
    noted = [note for note in notes(found) if "too few to distinguish" in note]
    assert len(noted) == bool(bound) and all(f"less than {bound} points" in note for note in noted)
    seven = of(first=[""] * samples, second=["apgd-ce"] * 7 + same[2:])
    assert seven.best("robust", "shapes") == ("first",)


def test_a_small_difference_in_one_direction_is_significant() -> None:
    # The accuracies are 50 % and 63 % of 60 samples, so their intervals overlap. All samples on which the models differ
    # are correct only under the second.
    found = of(first=HALF, second=[*[""] * 38, *HALF[38:]])
    first, second = (model.datasets["shapes"].robust for model in found.models)
    pair = next(pair for pair in found.pairs if pair.measure == "robust")
    assert first.high > second.low and pair.datasets["shapes"].p_holm <= ALPHA
    assert [model.rank for model in found.models] == ["2", "1"]


def test_to_json_returns_a_json_document(tmp_path: Path) -> None:
    import json

    document = of(one=HALF, two=BROKEN).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["pairs"][0]["datasets"]["shapes"]["p_holm"] <= 1
