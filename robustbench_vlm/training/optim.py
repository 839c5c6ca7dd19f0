"""Optimisers and the learning rate over a training."""

import math

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.defenses.base import Schedule

_MOMENTUM = 0.9


def make_optimizer(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the schedule's optimiser over all parameters of a network; raise UserError for an unknown one."""
    parameters = list(network.parameters())
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=_MOMENTUM, weight_decay=schedule.weight_decay)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=schedule.weight_decay)
    raise UserError(f"unknown optimizer {schedule.optimizer!r}: it is one of sgd, adamw")


def rate_at(schedule: Schedule, steps: int, step: int) -> float:
    """Return the learning rate of step `step` in [0, steps): a linear warm-up, then half a cosine down to zero."""
    whole = schedule.cosine == "whole"
    if step < schedule.warmup:
        # timm's schedule, which AGFT takes, begins at zero.
        return schedule.lr * (step if whole else step + 1) / schedule.warmup
    begin = 0 if whole else schedule.warmup
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - begin) / (steps - begin)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters of an optimiser the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
