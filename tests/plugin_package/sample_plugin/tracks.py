"""A track that uses only values of this package, and its protocol."""

from fractions import Fraction

from robustbench_vlm.defenses.base import Schedule
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import Track

FEW = Protocol("few", 1, 6, description="six samples per dataset")
SAMPLE = Track(
    name="sample",
    base="sample-clip",
    datasets=("stripes",),
    architecture="narrow",
    training="scenes",
    num_training_images=16,
    training_eps=Fraction(8, 255),
    schedule=Schedule("adamw", lr=1e-3, weight_decay=0.0, batch_size=8, epochs=1, warmup=0),
    norm="L2",
    eps=(Fraction(1, 2), Fraction(1)),
    standard_eps=Fraction(1, 2),
    protocols=("few",),
    leaderboard_protocol="few",
    description="made up",
)
