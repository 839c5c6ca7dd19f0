"""Strict JSON: ambiguous JSON is refused, and the message names the field of the problem."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import robustbench_vlm
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.strict_json import read_json, validate


@dataclass(frozen=True)
class Layer:
    """A part of `Network`, for the tests of `validate`."""

    width: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be a positive integer, got {self.width}")


@dataclass(frozen=True)
class Network:
    """A document, for the tests of `validate`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    layers: tuple[Layer, ...] = ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "repeats the key 'a'"),
        ('[{"x": {"a": 1, "a": 1}}]', "repeats the key 'a'"),
        ("[NaN]", "has NaN"),
        ("[-Infinity]", "has -Infinity"),
        ("[1e999]", "larger than any 64-bit float"),
        ("[-1e999]", "larger than any 64-bit float"),
        (f"[{10**30}]", "more than 64 bits"),
        (f"[{'9' * 5000}]", "more than 64 bits"),
        ('["\\ud800"]', "lone surrogate"),
        ('{"\\udfff": 1}', "lone surrogate"),
        ("[" * 17 + "]" * 17, "nested deeper than 16"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 16"),
        ('{"a": 1,}', "is not JSON"),
        ("", "is not JSON"),
        ("[1] [2]", "is not JSON"),
        ('"' + "x" * 2**20 + '"', "is larger than 1,048,576 bytes"),
        ('["\ud800"]', "is not UTF-8"),
    ],
)
def test_ambiguous_or_invalid_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_json(text, "the card")
    assert str(caught.value).startswith("the card ")
    assert len(str(caught.value)) < 300


def test_values_equal_those_of_the_json_module(tmp_path: Path) -> None:
    values = {"a": [1, -2.5, True, None, 2**63, 1e308], "b": {"c": "\U0001f600\n"}, "": []}
    assert read_json(json.dumps(values), "the card") == values
    path = tmp_path / "card.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert read_json(path, "the card") == values
    assert read_json("[" * 16 + "]" * 16, "the card") is not None
    assert read_json("3", "the number", max_depth=0) == 3


def test_unreadable_files_are_reported_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the card .*absent.json: No such file"):
        read_json(tmp_path / "absent.json", "the card")
    with pytest.raises(UserError, match="cannot read the card"):
        read_json(tmp_path, "the card")
    (tmp_path / "latin.json").write_bytes('"\u00e9"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"the card .*latin.json is not UTF-8 text: ask its author"):
        read_json(tmp_path / "latin.json", "the card", advice="ask its author")
    (tmp_path / "large.json").write_text("[" + "0," * 600 + "0]")
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        read_json(tmp_path / "large.json", "the card", max_bytes=1000)


def test_validate_returns_a_dataclass() -> None:
    found = validate(Network, {"name": "a", "layers": [{"width": 3}, {"width": 4, "scale": 2}]}, "net.json")
    assert found == Network("a", (Layer(3), Layer(4, 2.0)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "net.json: name: this field is required, but it is missing; correct the file"),
        ({"name": "a", "nam": 1}, "net.json: nam: unknown field; correct the file"),
        ({"name": 3}, "net.json: name: Input should be a valid string, got 3; correct the file"),
        (
            {"name": "a", "layers": [{"width": "3"}]},
            "layers/0/width: Input should be a valid integer, got '3'",
        ),
        ({"name": "a", "layers": [{"width": 0}]}, "net.json: layers/0: width must be a positive integer, got 0"),
        ({"name": True, "layers": 2}, "(1 more problems)"),
        ({"name": "a", "\x1b[31m" * 30: 1}, "\\x1b[31m"),
        ([], "net.json: "),
    ],
)
def test_a_validation_error_names_the_field(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Network, values, "net.json")
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


OWN_FILES = {
    "core/strict_json.py",
    # These read files of the package.
    "datasets/image_folder.py",
    "datasets/prompts/base.py",
    "datasets/published/class_lists.py",
    # These read files that this program wrote to the cache or next to a dataset.
    "datasets/prepared.py",
    "datasets/published/checksums.py",
    "leaderboard/site/written_pages.py",
}
"""Modules that may use Python's JSON reader."""


def test_files_of_other_people_are_read_by_the_strict_reader_only() -> None:
    package = Path(robustbench_vlm.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"json\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found == OWN_FILES
