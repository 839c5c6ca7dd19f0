"""Canonical JSON and fingerprints: equal values have equal text and an equal sha256."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any


def _no_form(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


def plain(value: Any, other: Callable[[Any], Any] = _no_form) -> Any:
    """Return `value` in the types of JSON: dataclasses as objects, fractions as "1/255", tuples as lists.

    Values of other types are passed to `other`, which raises TypeError if not given.
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
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN; equal values give equal text."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
