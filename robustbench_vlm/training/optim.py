"""Optimizers and learning rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.defenses.base import Schedule

OPTIMIZERS = ("sgd", "adamw", "clip-adamw")
_MOMENTUM = 0.9
_CLIP_BETAS = (0.9, 0.98)
_MAX_GRADIENT_NORM = {"clip-adamw": 1.0}
"""Optimizers with gradient clipping, and the largest norm of their gradients. Other optimizers do not clip."""


def make_optimizer(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer that a schedule names, for all parameters of a network.

    "clip-adamw" is the AdamW of CLIP's pre-training (arXiv 2103.00020). This optimizer has betas (0.9, 0.98) and no
    weight decay on biases, gains and other parameters with fewer than two dimensions. Its gradients are clipped to norm
    1. Raises UserError for an unknown optimizer.
    """
    parameters, decay = list(network.parameters()), schedule.weight_decay
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=_MOMENTUM, weight_decay=decay)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=decay)
    if schedule.optimizer == "clip-adamw":
        matrices = {"params": [each for each in parameters if each.ndim > 1], "weight_decay": decay}
        others = {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}
        return torch.optim.AdamW([matrices, others], lr=0.0, betas=_CLIP_BETAS, fused=True)
    raise UserError(f"unknown optimizer {schedule.optimizer!r}: give one of {', '.join(OPTIMIZERS)}")


def clip_gradients(parameters: Iterable[nn.Parameter], schedule: Schedule) -> None:
    """Clip the total norm of all gradients if the optimizer of the schedule is one of `_MAX_GRADIENT_NORM`."""
    if schedule.optimizer in _MAX_GRADIENT_NORM:
        nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM[schedule.optimizer])


def take_step(optimizer: torch.optim.Optimizer, schedule: Schedule) -> bool:
    """Clip the gradients and take an optimizer step.

    Returns False if a number in the step is too large for the dtype of the weights, such as a learning rate of 1e39.
    """
    clip_gradients((each for group in optimizer.param_groups for each in group["params"]), schedule)
    try:
        optimizer.step()
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return False
    return True


def lr_at(schedule: Schedule, steps: int, step: int) -> float:
    """Return the learning rate of step number `step`. The first of `steps` steps is 0."""
    cosine = schedule.cosine
    if step == 0 and schedule.first_lr == "full":
        return schedule.lr
    if step < schedule.warmup and cosine != "product":
        # "whole" is the schedule of the library timm, which AGFT uses. Its warm-up starts at a learning rate of zero.
        return schedule.lr * (step if cosine == "whole" else step + 1) / schedule.warmup
    warm = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    begin = schedule.warmup if cosine == "remaining" else 0
    lr = schedule.lr * warm if cosine == "product" else schedule.lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - begin) / (steps - begin)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters of an optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = lr
