"""Checkpoints: all that a training needs to go on as if it had never stopped."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of the training of an identity.

    Data order and random numbers follow from the step, so that weights, optimiser and step are the whole state.
    """

    path: Path
    identity: str

    def load(self, tower: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Put the state back and return the steps and the seconds behind it; (0, 0.0) where nothing is saved.

        Raises UserError for a file that is damaged or of another training.
        """
        if not self.path.exists():
            return 0, 0.0
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            identity, step, seconds = str(state["identity"]), int(state["step"]), float(state["seconds"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.path} is no whole checkpoint ({type(error).__name__}): remove it, or train into another"
                " folder by --out"
            ) from error
        if identity != self.identity:
            raise UserError(
                f"{self.path} is of a training with other settings: give another folder by --out, or begin anew by"
                " --no-resume"
            )
        tower.load_state_dict(state["tower"])
        optimizer.load_state_dict(state["optimizer"])
        return step, seconds

    def save(self, tower: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        """Write the state whole, in place of the one before."""
        state = {
            "identity": self.identity,
            "step": step,
            "seconds": seconds,
            "tower": tower.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        write_whole(self.path, lambda partial: torch.save(state, partial))
