"""Communication between the processes of a training that `accelerate launch` or `torchrun` started."""

from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.device import choose_device


class _SumOfParts(torch.autograd.Function):
    """An autograd function. It sums a tensor over all processes. The backward pass sums the gradients."""

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
    """The processes that share a training. Without a launcher (accelerate or torchrun) there is only one process.

    Raises UserError for a device that is unknown or unavailable, or if this process already uses another device.
    """

    def __init__(self, device: str = "") -> None:
        from accelerate import PartialState

        chosen = choose_device(device)
        self._state = PartialState(cpu=chosen == "cpu")
        self.device: torch.device = self._state.device
        self.is_main: bool = self._state.is_main_process
        self.count: int = self._state.num_processes
        if self.device.type != chosen:
            raise UserError(
                f"the device {chosen} was given, but this process already trains on {self.device.type}: start a new"
                f" process for {chosen}"
            )

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of `rows`, int64 (B,), which are the positions of a batch's images."""
        return rows[self._state.process_index :: self.count]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in the same shape and without a gradient."""
        if self.count == 1:
            return values.detach()
        return _summed(values)

    def total_of_parts(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in the same shape.

        In the backward pass each process gets the sum of the gradients of all processes.
        """
        if self.count == 1:
            return values
        summed: Tensor = _SumOfParts.apply(values)
        return summed

    def agree(self, number: int) -> bool:
        """Return whether all processes pass the same integer `number`, whose absolute value must be below 2**63."""
        if self.count == 1:
            return True
        # The minimum of -number is minus the maximum of number. Therefore one minimum over both values gives both
        # extremes, and integers are compared exactly.
        extremes = torch.tensor([number, -number], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MIN)
        low, negative_high = extremes.tolist()
        return bool(low == -negative_high)

    def add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace each process's gradients by their sum over all processes."""
        if self.count == 1:
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        summed = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, summed.split([each.numel() for each in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def wait(self) -> None:
        """Wait until every process reaches this call."""
        self._state.wait_for_everyone()
