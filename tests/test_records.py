"""Canonical JSON and fingerprints: equal values give equal texts, different values give different texts."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from robustbench_vlm.core.fingerprint import canonical, fingerprint, plain
from robustbench_vlm.core.records import Accuracy, wilson

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@dataclass(frozen=True)
class Pair:
    first: object
    second: object


@given(VALUES)
def test_canonical_text_is_ascii_json_of_the_value(value: object) -> None:
    assert json.loads(canonical(value)) == value
    assert canonical(value).isascii()


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_change_the_fingerprint(value: dict[str, object], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert fingerprint({key: value[key] for key in keys}) == fingerprint(value)


@given(VALUES, VALUES)
def test_different_values_have_different_fingerprints(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (fingerprint(one) == fingerprint(other)) is same


@given(st.fractions(), VALUES)
def test_dataclasses_tuples_fractions_and_paths_are_converted(fraction: Fraction, value: object) -> None:
    assert plain(Pair(fraction, (value, Path("a/b")))) == {"first": str(fraction), "second": [value, "a/b"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_nan_and_infinity_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(value)


def test_types_without_a_json_form_are_refused() -> None:
    for value in ({1, 2}, b"bytes", object(), Pair):
        with pytest.raises(TypeError, match="cannot be written as JSON"):
            canonical(value)


def test_a_fingerprint_never_changes() -> None:
    """Old records are found by their fingerprint, so it must stay the same in all versions."""
    value = {"b": [1, 2.5, None, True], "a": Fraction(1, 255), "é": "ü"}
    assert canonical(value) == '{"a":"1/255","b":[1,2.5,null,true],"\\u00e9":"\\u00fc"}'
    assert fingerprint(value) == "b244667337eb08db55e16bb639ff9c6b88494bb7c8b0937274efa7903616de77"


def test_an_accuracy_has_three_table_columns() -> None:
    assert Accuracy(0.5, 0.25, 0.75, 8).columns("robust") == {"robust": 0.5, "robust_low": 0.25, "robust_high": 0.75}


@given(st.integers(1, 3000), st.floats(0, 1))
def test_the_wilson_interval_has_exactly_the_floats_of_scipy(n: int, share: float) -> None:
    # Entries store the floats, and a check compares them with `!=`.
    expected = binomtest(round(share * n), n).proportion_ci(method="wilson")
    assert wilson(round(share * n), n) == (expected.low, expected.high)
