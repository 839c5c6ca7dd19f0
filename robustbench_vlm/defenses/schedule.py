"""How long a training is and how its learning rate goes; importing this imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Optimiser and learning rate: a linear warm-up, then half a cosine to zero, stepped every iteration."""

    optimizer: str
    """"sgd" (momentum 0.9) or "adamw"."""
    lr: float
    weight_decay: float
    batch_size: int
    warmup: int
    """Iterations."""
    epochs: int = 0
    steps: int = 0
    """Iterations of the whole training, where a paper counts them and not epochs."""
    cosine: Literal["remaining", "whole"] = "remaining"
    """Whether the cosine begins when the warm-up ends, or with the training and is hidden until then."""

    def __post_init__(self) -> None:
        assert bool(self.epochs) != bool(self.steps), "a schedule counts epochs or steps"
