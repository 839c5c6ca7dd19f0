"""Tracks: a base model, its zero-shot data sets, the threats, and the protocol."""

from dataclasses import dataclass
from fractions import Fraction

from robustbench_vlm.registry import Registry


@dataclass(frozen=True)
class Track:
    """What is compared with what."""

    name: str
    base: str
    """The undefended model that defenses start from."""
    datasets: tuple[str, ...]
    training: str
    """The fine-tuning set; it stays out of the mean."""
    norm: str
    eps: tuple[Fraction, ...]
    """The radii of the curve, pixel scale."""
    standard_eps: Fraction
    protocols: tuple[str, ...]
    """The first is the default."""
    description: str = ""


MINI = Track(
    name="mini",
    base="clip",
    datasets=(
        "shapes",
        "colours",
        "textures",
        "backgrounds",
        "positions",
        "counting",
        "fine-grained",
        "relations",
        "digits",
        "day-night",
        "outlines",
        "low-contrast",
        "handwritten",
    ),
    training="scenes",
    norm="Linf",
    eps=(Fraction(4, 255), Fraction(8, 255), Fraction(16, 255)),
    standard_eps=Fraction(8, 255),
    protocols=("mini-quick", "mini"),
    description="the embedded track: a small CLIP and a small visual world, without download or GPU",
)

TRACKS = Registry("track", {"mini": "robustbench_vlm.tracks:MINI"})
