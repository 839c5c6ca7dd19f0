"""The optimizer and learning rate schedule of a training. Importing this module does not import torch."""

from dataclasses import dataclass, field
from typing import Literal

from robustbench_vlm.core.fingerprint import LATER


@dataclass(frozen=True)
class Schedule:
    """The optimizer, batch size, length and learning rate of a training.

    The learning rate rises linearly during the warm-up and then falls to zero along half a cosine. It changes at every
    step. `training.optim.lr_at` computes it.
    """

    optimizer: str
    """Name of the optimizer: "sgd" (momentum 0.9), "adamw" or "clip-adamw". "clip-adamw" is the optimizer of CLIP's
    pre-training. The module `training.optim` describes it.
    """
    lr: float
    """The learning rate at the end of the warm-up. After that, the cosine lowers it."""
    weight_decay: float
    batch_size: int
    warmup: int
    """Steps of the linear warm-up."""
    epochs: int = 0
    """Length of the training in epochs. It is 0 if `steps` is given."""
    steps: int = 0
    """Length of the training in optimizer steps, for papers that count steps. It is 0 if `epochs` is given."""
    cosine: Literal["remaining", "whole", "product"] = "remaining"
    """The steps that the cosine covers.

    "remaining" means the steps after the warm-up. "whole" means all steps, and the warm-up replaces the beginning of
    the cosine. "product" means all steps, and the learning rate is the product of the warm-up and the cosine.
    """

    first_lr: Literal["warm-up", "full"] = field(default="warm-up", metadata=LATER)
    """The learning rate of the first step.

    "warm-up" means the first value of the warm-up. "full" means `lr`. Some released code creates the optimizer with
    `lr` and updates the learning rate after each step. Its warm-up therefore starts with the second step."""

    def __post_init__(self) -> None:
        assert bool(self.epochs) != bool(self.steps), "a schedule must have either epochs or steps, and not both"
