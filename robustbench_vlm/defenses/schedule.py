"""The optimizer and learning-rate schedule of a training; importing this module does not import torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Optimizer, batch size, length and learning rate: a linear warm-up and half a cosine down to zero.

    The learning rate changes at every step. `robustbench_vlm.training.optim` computes it.
    """

    optimizer: str
    """"sgd" (momentum 0.9), "adamw", or "clip-adamw", the optimizer of CLIP's pre-training (see `training.optim`)."""
    lr: float
    """The highest learning rate."""
    weight_decay: float
    batch_size: int
    warmup: int
    """Steps of the linear warm-up."""
    epochs: int = 0
    steps: int = 0
    """Steps of the whole training, for papers that count steps instead of epochs."""
    cosine: Literal["remaining", "whole", "product"] = "remaining"
    """The steps that the cosine covers: those after the warm-up ("remaining"), or all of them. With "whole" the warm-up
    replaces the beginning of the cosine; with "product" the warm-up factor multiplies it."""

    def __post_init__(self) -> None:
        assert bool(self.epochs) != bool(self.steps), "a schedule counts epochs or steps"
