"""Threat models: the norm and radius (eps) of the allowed perturbations, on the pixel scale [0, 1]."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from robustbench_vlm.core.errors import UserError

NORMS = ("Linf", "L2")
_LARGEST = {"Linf": 1, "L2": 10**6}
"""The largest accepted radius of each norm. For L2, 10**6 is the largest distance of two images with 10**12 pixels."""
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
    """Convert a text or a Fraction to an exact radius. Raises UserError for a float, because floats are not exact."""
    if not isinstance(eps, str | Fraction):
        raise UserError(
            f"eps must be a text or a Fraction, got the {type(eps).__name__} {eps!r}: give the exact value, as in"
            " '4/255'"
        )
    return parse_eps(eps) if isinstance(eps, str) else eps
