"""Format accuracies and their differences. All tables, plots, pages and messages use these functions.

The decimal value of a number is rounded, and halves are rounded away from zero. Python's formatting rounds the binary
value, and it rounds halves to even digits. Python would show 13/16 as 81.2 % and 577/2000 as 28.8 %.
"""

from decimal import ROUND_HALF_UP, Decimal

_DIGITS = 12
"""Number of decimals to which a float is rounded first. Later digits are rounding errors of float arithmetic."""


def percent(share: float, digits: int = 1) -> str:
    """Return a fraction in [0, 1] as a percentage, such as "81.3". `digits` is the number of decimals."""
    return _rounded(share, 100, digits)


def percent_interval(low: float, high: float, digits: int = 1, *, dash: str = "-") -> str:
    """Return an interval of fractions in [0, 1] as percentages, such as "79.9-82.6"."""
    return f"{percent(low, digits)}{dash}{percent(high, digits)}"


def percentage_points(difference: float, digits: int = 1) -> str:
    """Return a difference of two fractions in percentage points with its sign, such as "+1.3". 0 becomes "+0.0"."""
    text = percent(difference, digits)
    return text if text.startswith("-") else f"+{text}"


def decimals(number: float, digits: int) -> str:
    """Return a number with a fixed number of decimals. A negative number that is rounded to zero has no sign."""
    return _rounded(number, 1, digits)


def _rounded(number: float, factor: int, digits: int) -> str:
    exact = factor * Decimal(repr(round(float(number), _DIGITS)))
    found = exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    return f"{found if found else abs(found):f}"
