"""The result of one check, for `vlmbench check` and `vlmbench doctor`."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. It tests whether a statement is true, or whether a measured value is small enough."""

    name: str
    """The tested statement, such as "ids are unique", or the measured property, such as "gradient"."""
    passed: bool
    detail: str = ""
    """The observed values, in words."""
    value: float | None = None
    """The measured value that is compared with `limit`. None for a check without a limit."""
    limit: float | None = None
    """The largest value that passes."""
    is_unusual: bool = False
    """True if the check passes but the user should look at its value. `status` is then "warn"."""

    @property
    def status(self) -> str:
        """Return "pass", "warn" or "fail"."""
        return "fail" if not self.passed else "warn" if self.is_unusual else "pass"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document. A value that is not finite is null."""
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return {
            "name": self.name,
            "status": self.status,
            "passed": self.passed,
            "detail": self.detail,
            "value": value,
            "limit": self.limit,
        }

    def __str__(self) -> str:
        limit = "" if self.limit is None else f" (limit {self.limit:g})"
        return f"{self.name}{': ' if self.detail else ''}{self.detail}{limit}"
