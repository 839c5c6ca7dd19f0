"""Checkpoints: save and restore the state of a training, so that a resumed training gives the same final weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.training.tensor_files import damaged_file, load_tensors, save_tensors


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one fine-tuning or pre-training.

    The state of a training consists of the weights, the state of the optimizer and the number of finished steps. This
    number decides which images and random numbers the next step uses.
    """

    path: Path
    identity: str
    """The fingerprint of all settings that decide the weights. Checkpoint files with another fingerprint are not
    accepted."""

    def load(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Restore the state of the training from the checkpoint file.

        Returns the number of finished steps and the training time so far in seconds, or (0, 0.0) if the file does not
        exist.

        Raises UserError if the file is damaged or belongs to a training with other settings.
        """
        if not self.path.exists():
            return 0, 0.0
        state = load_tensors(self.path, "checkpoint")
        try:
            identity, step, seconds = str(state["identity"]), int(state["step"]), float(state["seconds"])
            if identity == self.identity:
                network.load_state_dict(state["tower"])
                optimizer.load_state_dict(state["optimizer"])
        # A file that is not a checkpoint may raise many types of errors when it is read.
        except Exception as error:
            raise damaged_file(self.path, "checkpoint", error) from error
        if identity != self.identity:
            raise UserError(
                f"{self.path} belongs to a training with other settings or other images: give another folder by --out,"
                " or start from the beginning by removing the file (`vlmbench train --no-resume` does that)"
            )
        return step, seconds

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        """Replace the checkpoint file atomically by a new one with the state after `step` steps.

        `seconds` is the training time so far.
        """
        state = {
            "identity": self.identity,
            "step": step,
            "seconds": seconds,
            "tower": network.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save_tensors(self.path, state)
