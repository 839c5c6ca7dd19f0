"""Tracks. A track is a base model, datasets, threat models and protocols. Models on one track are comparable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from robustbench_vlm.core.registry import Registry
from robustbench_vlm.defenses.schedule import Schedule


@dataclass(frozen=True)
class Track:
    """A base model with datasets, threat models, protocols and a training budget. Models on a track are comparable."""

    name: str
    base: str
    """The model without a defense. The training of all defenses starts from it."""
    datasets: tuple[str, ...]
    """The datasets of the evaluation."""
    architecture: str
    """The architecture of the base model, a registered name or "open_clip:NAME"."""
    training_eps: Fraction
    """The radius of adversarial training, for pixels in [0, 1]."""
    norm: str
    """The norm of the threat models: "Linf" or "L2"."""
    eps: tuple[Fraction, ...]
    """The radii of the evaluation, for pixels in [0, 1]."""
    standard_eps: Fraction
    """The radius at which the leaderboard ranks models, one of `eps`."""
    protocols: tuple[str, ...]
    """The protocols of the track. The first is the default."""
    leaderboard_protocol: str
    """The protocol that leaderboard entries must follow."""
    attack: str = "autoattack"
    """To get a rank, a leaderboard entry needs records of this attack. A sample counts as robust if the model
    classifies it correctly without an attack and after every recorded attack."""
    training: str = ""
    """The dataset for fine-tuning. "" means that the user gives a folder of images."""
    training_datasets: tuple[str, ...] = ()
    """Datasets on which models are trained. They are left out of the zero-shot mean. A second mean includes them."""
    num_training_images: int = 0
    """The number of training images. 0 means all images in the folder that the user gives."""
    schedule: Schedule | None = None
    """The training schedule of all defenses on this track. None means that each defense uses its published schedule."""
    inner_attack: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the attack in adversarial training. All defenses on this track use them."""
    weights_dtype: str = "float32"
    """The dtype in which trained encoders are saved. Models always run in float32."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rate of each defense, chosen on held-out images of the fine-tuning dataset. The keys are defenses."""
    description: str = ""
    """One sentence for `vlmbench list tracks`."""
    title: str = ""
    """A few words that follow the name of the track on the site, such as "15 real datasets"."""


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
    training_datasets=("scenes",),
    num_training_images=30_720,
    training_eps=Fraction(6, 255),
    schedule=Schedule("adamw", lr=1e-2, weight_decay=1e-4, batch_size=128, epochs=8, warmup=100),
    learning_rates={"gladiator": 3e-3},
    inner_attack={"steps": 2, "step_size": Fraction(1), "momentum": 0.0},
    weights_dtype="float16",
    norm="Linf",
    eps=(Fraction(5, 510), Fraction(5, 255), Fraction(10, 255)),
    standard_eps=Fraction(5, 255),
    protocols=("mini-quick", "mini"),
    leaderboard_protocol="mini",
    description="The embedded track has a small CLIP and 13 drawn datasets. It needs no download and no GPU",
    title="synthetic, runs on a laptop",
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
    # Some released models were trained on TinyImageNet, which has 200 of ImageNet's classes.
    training_datasets=("imagenet", "tiny-imagenet"),
    architecture="open_clip:ViT-B-32-quickgelu",
    training_eps=Fraction(1, 255),
    norm="Linf",
    eps=(Fraction(1, 255), Fraction(2, 255), Fraction(4, 255)),
    standard_eps=Fraction(1, 255),
    protocols=("trusted", "trusted-native", "agft-2026", "fare-2024", "tecoa-2023", "tga-2024"),
    leaderboard_protocol="trusted",
    description="The real track has CLIP ViT-B/32 and the 15 datasets of AGFT's paper. ImageNet is not in the mean",
    title="15 real datasets",
)

DEFAULT_TRACK = "mini"
"""Name of the track that is used if the user does not give a track."""
TRACKS = Registry("track", {"mini": "robustbench_vlm.tracks:MINI", "zeroshot15": "robustbench_vlm.tracks:ZEROSHOT15"})
