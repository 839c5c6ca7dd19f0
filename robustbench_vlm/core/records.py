"""The records that a run leaves behind, and the canonical JSON form and fingerprint of every value."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

CLEAN = "clean"
"""`broken_by` of a sample that the model gets wrong without any attack."""


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """What one cell found out about one sample; one row of a shard's parquet file."""

    sample_id: str
    """The sample's name within its dataset."""
    image_sha256: str
    """Digest of the decoded uint8 pixels, (3, H, W) in C order."""
    label: int
    clean_prediction: int
    adversarial_prediction: int
    """What the harness itself predicts for the projected adversarial image; the clean one where none was found."""
    broken_by: str
    """The stage that broke it, "clean" if it was wrong without an attack, "" if it is robust."""
    distance: float
    """Size of the kept perturbation in the threat's norm, pixel scale; 0 where none was kept."""
    forward: int
    backward: int
    """Passes through the network spent on this sample."""
    margin: float
    """Clean logit of the label minus the largest other, divided by the logit scale."""
    warnings: str
    """Codes of the gates that this sample raised, comma-separated."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share in [0, 1] with its 95 % interval, of `n` samples."""

    value: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Score:
    """One cell's accuracies in [0, 1] with 95 % Wilson intervals, derived from its sample results."""

    model: str
    attack: str
    dataset: str
    classes: int
    eps: str
    n: int
    clean: float
    robust: float
    clean_interval: tuple[float, float]
    robust_interval: tuple[float, float]
    warnings: tuple[str, ...]


def _no_form(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def plain(value: Any, other: Callable[[Any], Any] = _no_form) -> Any:
    """Return `value` in JSON's own types: dataclasses as objects, fractions as "1/255", tuples as lists.

    What has no such form goes through `other`, which raises TypeError if not given.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), other) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, other) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item, other) for item in value]
    if isinstance(value, Fraction | Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return other(value)


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no blanks, no NaN; equal values give equal text."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
