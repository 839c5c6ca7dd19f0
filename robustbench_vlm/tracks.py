"""Tracks: a base model, its zero-shot datasets, the threats, and the protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from robustbench_vlm.core.registry import Registry
from robustbench_vlm.defenses.schedule import Schedule


@dataclass(frozen=True)
class Track:
    """A base model, its datasets, threats and protocols, and the training budget of every defense."""

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
    board: str
    """The protocol of its leaderboard."""
    attack: str = "autoattack"
    """The attack whose number counts on its leaderboard, with what every other one broke too."""
    training: str = ""
    """The fine-tuning set; empty: a folder that the user names."""
    seen: tuple[str, ...] = ()
    """Training datasets, left out of the zero-shot mean; a second mean includes them."""
    num_training_images: int = 0
    schedule: Schedule | None = None
    """The budget that every defense has here; None: each one's published schedule."""
    inner: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the inner attack that are the same for every defense here."""
    stored: str = "float32"
    """What trained towers are rounded to in their files; they run in float32 whatever it is."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates found for single defenses on held-out images of the fine-tuning set."""
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
    seen=("scenes",),
    num_training_images=30_720,
    training_eps=Fraction(6, 255),
    schedule=Schedule("adamw", lr=1e-2, weight_decay=1e-4, batch_size=128, epochs=8, warmup=100),
    learning_rates={"gladiator": 3e-3},
    inner={"steps": 2, "step_size": Fraction(1), "momentum": 0.0},
    stored="float16",
    norm="Linf",
    eps=(Fraction(5, 510), Fraction(5, 255), Fraction(10, 255)),
    standard_eps=Fraction(5, 255),
    protocols=("mini-quick", "mini"),
    board="mini",
    description="the embedded track: a small CLIP and a small visual world, without download or GPU",
)

ZEROSHOT15 = Track(
    name="zeroshot15",
    base="clip",
    datasets=(
        "caltech101",
        "caltech256",
        "cifar10",
        "cifar100",
        "dtd",
        "eurosat",
        "fgvc-aircraft",
        "flowers102",
        "food101",
        "imagenet",
        "oxford-pets",
        "pcam",
        "stanford-cars",
        "stl10",
        "sun397",
    ),
    # TinyImageNet is 200 of ImageNet's classes, and released models were trained on it.
    seen=("imagenet", "tiny-imagenet"),
    architecture="open_clip:ViT-B-32-quickgelu",
    training_eps=Fraction(1, 255),
    norm="Linf",
    eps=(Fraction(1, 255), Fraction(2, 255), Fraction(4, 255)),
    standard_eps=Fraction(1, 255),
    protocols=("trusted", "agft-2026", "fare-2024", "tecoa-2023", "tga-2024"),
    board="trusted",
    description="the real track: CLIP ViT-B/32 on the fifteen datasets of AGFT's paper, ImageNet out of the mean",
)

TRACKS = Registry("track", {"mini": "robustbench_vlm.tracks:MINI", "zeroshot15": "robustbench_vlm.tracks:ZEROSHOT15"})
