"""Tracks: a base model, its zero-shot data sets, the threats, and the protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from robustbench_vlm.defenses.defense import Schedule
from robustbench_vlm.registry import Registry


@dataclass(frozen=True)
class Track:
    """What is compared with what."""

    name: str
    base: str
    """The undefended model that defenses start from."""
    datasets: tuple[str, ...]
    architecture: str
    training_eps: Fraction
    norm: str
    eps: tuple[Fraction, ...]
    """The radii of the curve, pixel scale."""
    standard_eps: Fraction
    protocols: tuple[str, ...]
    """The first is the default."""
    training: str = ""
    """The fine-tuning set, which stays out of the mean; empty: a folder that the user names."""
    training_pictures: int = 0
    schedule: Schedule | None = None
    """The budget that every defense has here; None: each one's published schedule."""
    inner: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the inner attack that are the same for every defense here."""
    stored: str = "float32"
    """What trained towers are rounded to in their files; they run in float32 whatever it is."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates found for single defenses on held-out pictures of the fine-tuning set."""
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
    architecture="mini",
    training="scenes",
    training_pictures=30_720,
    training_eps=Fraction(6, 255),
    schedule=Schedule("adamw", rate=1e-2, weight_decay=1e-4, batch=128, epochs=8, warmup=100),
    rates={"gladiator": 3e-3},
    inner={"steps": 2, "step_size": Fraction(1), "momentum": 0.0},
    stored="float16",
    norm="Linf",
    eps=(Fraction(5, 510), Fraction(5, 255), Fraction(10, 255)),
    standard_eps=Fraction(5, 255),
    protocols=("mini-quick", "mini"),
    description="the embedded track: a small CLIP and a small visual world, without download or GPU",
)

ZEROSHOT15 = Track(
    name="zeroshot15",
    base="open_clip:ViT-B-32-quickgelu/openai",
    datasets=(),
    architecture="open_clip:ViT-B-32-quickgelu",
    training_eps=Fraction(1, 255),
    norm="Linf",
    eps=(Fraction(1, 255), Fraction(2, 255), Fraction(4, 255)),
    standard_eps=Fraction(1, 255),
    protocols=("zeroshot15",),
    description="the real track: CLIP ViT-B/32, trained on an ImageNet folder; its data sets are still to come",
)

TRACKS = Registry("track", {"mini": "robustbench_vlm.tracks:MINI", "zeroshot15": "robustbench_vlm.tracks:ZEROSHOT15"})
