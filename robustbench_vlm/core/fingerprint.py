"""Canonical JSON and fingerprints. Equal values have equal JSON texts and equal sha256 digests."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

LATER = {"later": True}
"""Metadata that marks a dataclass field as added after the first published results. If such a field has its default
value, it is not part of the fingerprint. The fingerprints of old results therefore remain valid.
"""


def _refuse_type(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def plain(value: Any, other: Callable[[Any], Any] = _refuse_type) -> Any:
    """Convert a value to types of JSON: a dataclass to a dict, a Fraction to "1/255", and a tuple to a list.

    For a value of another type, the function `other` is called. By default, it raises TypeError.
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


def counted(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass from which its fingerprint is computed, as a dict from field names to values.

    A field that is marked with `LATER` is left out if it has its default value.
    """
    fields = [field for field in dataclasses.fields(value) if field.metadata != LATER or _is_changed(value, field)]
    return {field.name: getattr(value, field.name) for field in fields}


def _is_changed(value: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return bool(getattr(value, field.name) != default)


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value, with sorted keys and no spaces; raise ValueError for NaN."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Return the sha256 digest of the canonical JSON of a value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
