"""The processes that share a training, as accelerate starts and finds them: one, or several by `accelerate launch`."""

from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.device import choose_device


class _TotalOfParts(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed


class Processes:
    """This process among those of `accelerate launch` or `torchrun`; alone where neither started it.

    Raises UserError for a device that is unknown, not there, or not the one that an earlier call has taken.
    """

    def __init__(self, device: str = "") -> None:
        from accelerate import PartialState

        chosen = choose_device(device)
        self._state = PartialState(cpu=chosen == "cpu")
        self.device: torch.device = self._state.device
        self.is_main: bool = self._state.is_main_process
        self.count: int = self._state.num_processes
        if self.device.type != chosen:
            raise UserError(f"this process trains on {self.device.type} already: begin another one for {chosen}")

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of a batch's rows."""
        return rows[self._state.process_index :: self.count]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, without gradient."""
        if self.count == 1:
            return values.detach()
        return _summed(values)

    def total_of_parts(self, values: Tensor) -> Tensor:
        """Return the sum over all processes; the gradients of all of them flow back to each one's part."""
        if self.count == 1:
            return values
        summed: Tensor = _TotalOfParts.apply(values)
        return summed

    def agree(self, number: int) -> bool:
        """Say whether all processes have the same number, below 2**31 in size."""
        own = torch.tensor([number, number * number], dtype=torch.float64, device=self.device)
        summed = self.total(own)
        # Equal numbers alone have no variance.
        return bool(summed[1] * self.count == summed[0] ** 2)

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the sum of all processes' gradients in the place of each one's own."""
        if self.count == 1:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, summed.split([each.numel() for each in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """Wait until every process has come here."""
        self._state.wait_for_everyone()
