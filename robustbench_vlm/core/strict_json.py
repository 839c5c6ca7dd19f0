"""Strict reading of JSON from other people or programs: model cards, leaderboard entries and run manifests.

`read_json` parses a file or a text. It refuses JSON that two parsers could read differently. `validate` converts the
values to a dataclass or pydantic model. Its error message names the first wrong field.
"""

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")

STRICT: "ConfigDict" = {"extra": "forbid"}
"""pydantic's configuration of dataclasses that are read from JSON: unknown fields are refused."""
_LARGEST_INTEGER = 2**64
_ADVICE = "correct the file"
_MESSAGES = {
    "missing": "this field is required, but it is missing",
    "extra_forbidden": "unknown field",
    "unexpected_keyword_argument": "unknown field",
}
"""Messages for JSON errors. They replace messages of pydantic that use Python terms. The keys are types of pydantic
errors.
"""


def read_json(
    source: Path | str, what: str, *, max_bytes: int = 2**20, max_depth: int = 16, advice: str = _ADVICE
) -> Any:
    """Parse a JSON file (a `Path`) or a JSON text (a `str`), and return its values.

    Args:
        source: A file to read, or the text itself.
        what: The name of the document in error messages, such as "the model card".
        max_bytes: The largest allowed size in bytes, in UTF-8.
        max_depth: The largest allowed number of nested objects and arrays. A number or a text has depth 0.
        advice: The last part of each error message: the next step for the user.

    Raises:
        UserError: The file cannot be read, is too large, is not UTF-8, or is not JSON. An object repeats a key. The
            document is nested too deeply. It has NaN, an infinite number (such as 1e999), an integer of more than 64
            bits, or half of a Unicode surrogate pair.
    """
    name = f"{what} {source}" if isinstance(source, Path) else what
    text = _text_of(source, name, max_bytes, advice)
    try:
        values = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_object_without_duplicates,
        )
        _check_values(values, max_depth)
    except RecursionError:
        raise UserError(f"{name} is nested deeper than {max_depth} levels: {advice}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON: {error}; {advice}") from None
    except ValueError as error:
        raise UserError(f"{name} is not accepted: {error}; {advice}") from None
    return values


def validate(kind: type[T], values: Any, what: str, *, advice: str = _ADVICE) -> T:
    """Convert JSON values to the dataclass or pydantic model `kind`. The text "1" is not accepted as a number.

    Raises a UserError that names the first wrong field.
    """
    from pydantic import ValidationError

    try:
        # The values are converted back to JSON text. In JSON text, pydantic's strict mode accepts a list
        # for a tuple and an object for a dataclass. It does not accept them among Python values.
        found: T = _adapter(kind).validate_json(json.dumps(values), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise validation_error(error, what, advice=advice) from None
    return found


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a dataclass that has the configuration `STRICT`, as have the dataclasses in its fields.

    The descriptions in the schema are the docstrings of the fields.
    """
    from pydantic import TypeAdapter

    # pydantic needs 0.1 s to find the docstrings of an entry, so they are used only here.
    STRICT["use_attribute_docstrings"] = True
    try:
        return TypeAdapter(kind).json_schema()
    finally:
        del STRICT["use_attribute_docstrings"]


def validation_error(error: "ValidationError", what: str, *, advice: str = _ADVICE) -> UserError:
    """Convert pydantic's error to a UserError such as "card.json: training/eps: unknown field (2 more problems)"."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = "/".join(_printable(part) for part in first["loc"])
    message = _MESSAGES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    # Show the wrong value in the message only if it is short. For a missing field, pydantic gives the whole object
    # as the wrong value.
    given = first["input"]
    shown = "" if isinstance(given, dict | list) or first["type"] in _MESSAGES else f", got {_printable(repr(given))}"
    more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
    return UserError(f"{what}: {f'{place}: ' if place else ''}{message}{shown}{more}; {advice}")


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _text_of(source: Path | str, name: str, max_bytes: int, advice: str) -> str:
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                content = file.read(max_bytes + 1)
        else:
            content = source.encode()
        if len(content) > max_bytes:
            raise UserError(f"{name} is larger than {max_bytes:,} bytes: {advice}")
        return content.decode()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}; {advice}") from error
    except UnicodeError:
        raise UserError(f"{name} is not UTF-8 text: {advice}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the document has {name}, which is not a number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the document has the number {_printable(digits)}, which is larger than any 64-bit float")
    return value


def _integer(digits: str) -> int:
    # Python raises an error when it converts a text with thousands of digits, so the length of the
    # text is checked first.
    if len(digits) > 21 or abs(int(digits)) >= _LARGEST_INTEGER:
        raise ValueError(f"the document has the integer {_printable(digits)}, which has more than 64 bits")
    return int(digits)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the document repeats the key {_printable(repr(repeated))} in one object")
    return values


def _check_values(values: Any, max_depth: int) -> None:
    """Raise ValueError if values are nested too deeply, or if a text has a lone surrogate."""
    level, depth = [values], 0
    while level:
        try:
            "".join(text for value in level for text in _texts_in(value)).encode()
        except UnicodeEncodeError:
            raise ValueError("a text in the document has a lone surrogate (half of a \\ud83d\\ude00 pair)") from None
        containers = [value for value in level if isinstance(value, dict | list)]
        depth += bool(containers)
        if depth > max_depth:
            raise ValueError(f"the document is nested deeper than {max_depth} levels")
        level = [each for value in containers for each in (value.values() if isinstance(value, dict) else value)]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value


def _printable(value: object) -> str:
    """Escape control characters in untrusted text and shorten it to 80 characters, for use in a message."""
    text = str(value).encode("unicode_escape").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
