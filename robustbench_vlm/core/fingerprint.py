"""Canonical JSON and fingerprints. Equal values have equal JSON texts and equal sha256 digests."""

import dataclasses
import functools
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

_ATOMS = frozenset((str, int, float, bool, type(None)))


def _refuse_type(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def plain(value: Any, other: Callable[[Any], Any] = _refuse_type) -> Any:
    """Convert a value to types of JSON: a dataclass to a dict, a Fraction to "1/255", and a tuple to a list.

    For a value of another type, the function `other` is called. By default, it raises TypeError.
    """
    if type(value) in _ATOMS:
        return value
    if (names := _field_names(value.__class__)) is not None:
        found = [(name, getattr(value, name)) for name in names]
        # Records have thousands of texts and numbers. Without the check of the type, each of them costs a call.
        return {name: item if type(item) in _ATOMS else plain(item, other) for name, item in found}
    if isinstance(value, Mapping):
        return {str(key): plain(item, other) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [item if type(item) in _ATOMS else plain(item, other) for item in value]
    if isinstance(value, Fraction | Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return other(value)


@functools.cache
def _field_names(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields of a dataclass, or None for another type."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


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
