"""Threats: which perturbations an attacker may use, in pixel scale [0, 1]."""

from dataclasses import dataclass
from fractions import Fraction

from robustbench_vlm.core.errors import UserError

NORMS = ("Linf", "L2")
_ADVICE = "write eps as a fraction of the pixel range [0, 1], as in --eps 4/255 (Linf) or --eps 1/2 (L2)"


@dataclass(frozen=True)
class Threat:
    """A ball of radius `eps` (pixel scale [0, 1], exact) in `norm` ("Linf" or "L2"), cut with the box [0, 1]."""

    norm: str
    eps: Fraction

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"unknown norm {self.norm!r}: it is one of {', '.join(NORMS)}")
        if self.eps < 0 or (self.norm == "Linf" and self.eps > 1):
            raise UserError(f"eps {self.eps} is outside [0, 1]: {_ADVICE}")

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"

    @property
    def eps_text(self) -> str:
        """The radius as people write it, which `parse_eps` reads: "4/255" or "2.5/255" where that is exact."""
        hundredths = self.eps * 25500
        if self.norm != "Linf" or hundredths.denominator != 1:
            return str(self.eps)
        return f"{float(hundredths) / 100:.7g}/255"


def parse_eps(text: str) -> Fraction:
    """Read "4/255", "0.03" or "0" as an exact fraction; raise UserError for anything else, "8" and "1/0" included."""
    numerator, slash, denominator = text.strip().partition("/")
    try:
        # Through str.partition a second slash stays in the denominator, and Fraction would read it.
        eps = Fraction(numerator) / Fraction(denominator.replace("/", "?")) if slash else Fraction(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps {text!r} is not a number: {_ADVICE}") from None
    if eps >= 1 and not slash and eps != 1:
        raise UserError(f"eps {text!r} looks like pixel steps: {_ADVICE}, so {text}/255 if that was meant")
    return eps
