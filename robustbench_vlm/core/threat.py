"""Threat models: the norm and radius (eps) of the allowed perturbations, on the pixel scale [0, 1]."""

import re
import warnings
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from numbers import Real
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import decimals

NORMS = ("Linf", "L2")
_LARGEST = {"Linf": 1, "L2": 10**6}
"""The largest accepted radius of each norm. For L2, 10**6 is the largest distance of two images with 10**12 pixels."""
_CLOSE = Fraction(9, 20)
"""Largest distance, in units of 1/255, from a multiple of 1/255 at which `doubtful_eps` questions a radius. Radii such
as 2.5/255 are common and have the distance 1/2."""
_NORM_SPELLINGS = {"linf": "Linf", "inf": "Linf", "linfinity": "Linf", "l2": "L2"}
_ADVICE = "write eps as a fraction of the pixel range [0, 1], as in --eps 4/255 (Linf) or --eps 1/2 (L2)"
_NUMBER = re.compile(r"[-+]?(\d{1,300}(\.\d{0,300})?|\.\d{1,300})(e[-+]?\d{1,2})?", re.ASCII | re.IGNORECASE)
"""Pattern of a decimal number with few digits. Numbers with more digits are not accepted, because the computation of
their exact fraction may take very long.
"""


@dataclass(frozen=True)
class Threat:
    """A threat model: perturbations of at most `eps` in `norm`, with all pixels of the result in [0, 1]."""

    norm: str
    """"Linf" or "L2"."""
    eps: Fraction
    """The exact radius, for pixels in [0, 1]: at most 1 for Linf and at most 10**6 for L2."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"unknown norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        if self.eps < 0:
            raise UserError(f"eps {self.eps} is negative: {_ADVICE}")
        if self.eps > _LARGEST[self.norm]:
            shown = f"{float(self.eps):.10g}" if self.eps < 10**9 else "of 1e9 or more"
            hint = f"; if it is a number of pixel steps, write {shown}/255" if self.eps <= 255 else ""
            raise UserError(f"eps {shown} is larger than {_LARGEST[self.norm]} in {self.norm}: {_ADVICE}{hint}")

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"

    @property
    def eps_text(self) -> str:
        """The radius as text, for tables, plots and pages. `parse_eps` converts this text to an equal radius.

        A Linf radius is written as a number of 255ths, such as "4/255" or "15.9375/255". A radius without an exact form
        of this kind, such as 1/7, is written as a fraction. An L2 radius is always written as a fraction.
        """
        steps = 255 * self.eps
        decimal = Decimal(steps.numerator) / Decimal(steps.denominator)
        is_exact = Fraction(decimal) == steps
        return f"{decimal:f}/255" if self.norm == "Linf" and is_exact else str(self.eps)


def distance_text(norm: str, distance: float) -> str:
    """Return the size of a perturbation as text: in units of 1/255 for Linf, and in units of the pixel range for L2.

    `distance` is in units of the pixel range [0, 1]. For example, a Linf distance of 0.0196 becomes "5.00/255".
    """
    return f"{decimals(255 * distance, 2)}/255" if norm == "Linf" else decimals(distance, 4)


def parse_eps(text: str) -> Fraction:
    """Return a radius such as "4/255", "0.03" or "3" as an exact fraction; raise UserError for any other text.

    `Threat` checks that the radius fits the norm.
    """
    numerator, slash, denominator = text.strip().partition("/")
    parts = (numerator, denominator) if slash else (numerator, "1")
    if not all(_NUMBER.fullmatch(part) for part in parts) or not Fraction(parts[1]):
        raise UserError(f"eps {text[:40]!r} is not a number: {_ADVICE}")
    return Fraction(parts[0]) / Fraction(parts[1])


def exact_eps(eps: object) -> Fraction:
    """Convert a text, a fraction, or a number such as 8/255 or `numpy.float32(0.03)` to an exact radius.

    A floating-point number is close to the radius that was meant. If it is the rounded value of a fraction with a
    denominator up to 2550, the result is this fraction. If not, the result is its shortest decimal number.

    Warns if the value of a number is close to a multiple of 1/255, but not equal to it. Raises UserError for other
    types, and for a text that is not a number.
    """
    if isinstance(eps, Fraction):
        return eps
    if isinstance(eps, str):
        return parse_eps(eps)
    if isinstance(eps, bool) or not isinstance(eps, Real) or not isfinite(float(eps)):
        raise UserError(f"eps must be a number or a text such as '4/255', got the {type(eps).__name__} {eps!r}")
    fraction = Fraction(float(eps)).limit_denominator(2550)
    rounded: Any = type(eps)
    exact = fraction if rounded(float(fraction)) == eps else Fraction(str(eps))
    if doubt := doubtful_eps(str(exact)):
        warnings.warn(doubt, stacklevel=3)
    return exact


def doubtful_eps(text: str) -> str:
    """Return a question about a radius that is close to a multiple of 1/255, such as "8/256". Return "" for others.

    Radii of 1/4 or more are not questioned, because they are usually L2 radii. A radius with the denominator 255 is
    not questioned either. Raises UserError if the text is not a number.
    """
    exact = parse_eps(text)
    steps = 255 * exact
    nearest = round(steps)
    if text.strip().endswith("/255") or steps == nearest or not nearest or exact >= Fraction(1, 4):
        return ""
    if abs(steps - nearest) > _CLOSE:
        return ""
    return f"eps {text} is {float(steps):.6g}/255: write {nearest}/255 if you mean {nearest} steps of an 8-bit pixel"


def norm_named(text: str) -> str:
    """Return the norm that a user's text names: "Linf" for "linf", "l_inf" or "inf", and "L2" for "l2" or "l_2".

    Any other text is returned unchanged. `Threat` raises an error for it.
    """
    return _NORM_SPELLINGS.get(text.casefold().replace("_", ""), text)
