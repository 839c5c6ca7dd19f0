"""Threat models: the norm and radius (eps) of the allowed perturbations, on the pixel scale [0, 1]."""

from dataclasses import dataclass
from fractions import Fraction

from robustbench_vlm.core.errors import UserError

NORMS = ("Linf", "L2")
_ADVICE = "write eps as a fraction of the pixel range [0, 1], as in --eps 4/255 (Linf) or --eps 1/2 (L2)"


@dataclass(frozen=True)
class Threat:
    """A threat model: perturbations of at most `eps` in `norm`, with all pixels of the result in [0, 1]."""

    norm: str
    """"Linf" or "L2"."""
    eps: Fraction
    """The exact radius on the pixel scale [0, 1]; at most 1 for Linf."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"unknown norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        if self.eps < 0 or (self.norm == "Linf" and self.eps > 1):
            raise UserError(f"eps {self.eps} is outside [0, 1]: {_ADVICE}")

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"

    @property
    def eps_text(self) -> str:
        """The radius as text that `parse_eps` reads back exactly.

        A Linf radius is written in pixel steps, such as "4/255" or "2.5/255", if that is exact.
        """
        hundredths = self.eps * 25500
        if self.norm != "Linf" or hundredths.denominator != 1:
            return str(self.eps)
        return f"{float(hundredths) / 100:.7g}/255"


def parse_eps(text: str) -> Fraction:
    """Return a radius such as "4/255", "0.03" or "0" as an exact fraction.

    Raises UserError for text that is not a number, and for whole numbers such as "8", which probably mean pixel steps.
    """
    numerator, slash, denominator = text.strip().partition("/")
    try:
        # Fraction would accept a denominator that is a fraction itself, such as 2/3 in "1/2/3".
        eps = Fraction(numerator) / Fraction(denominator.replace("/", "?")) if slash else Fraction(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps {text!r} is not a number: {_ADVICE}") from None
    if eps >= 1 and not slash and eps != 1:
        raise UserError(f"eps {text!r} looks like pixel steps: {_ADVICE}; for pixel steps, give {text}/255")
    return eps
