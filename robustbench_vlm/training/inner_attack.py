"""The inner attack of adversarial training: PGD on the per-sample loss of a defense."""

import torch
from torch import Tensor

from robustbench_vlm.attacks.projections import project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.defenses.base import InnerAttack, LossContext


def inner_attack(context: LossContext, inner: InnerAttack, threat: Threat) -> Tensor:
    """Make adversarial images, float32 (B, 3, H, W) in [0, 1], by signed gradient ascent on the summed loss.

    Each step costs one forward and one backward pass of every image. The gradients of the weights are not computed.
    """
    eps = float(threat.eps)
    start = (randomness.uniform(context.keys, 0, context.images.shape[1:]) * 2 - 1) * eps
    adversarial = (context.images + start).clamp(0, 1)
    direction = torch.zeros_like(start)
    for _ in range(inner.steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = inner.loss(context, adversarial).sum()
        (gradient,) = torch.autograd.grad(loss, adversarial)
        direction = (inner.momentum * direction + gradient.sign()).sign()
        moved = adversarial.detach() + float(inner.step_size) * eps * direction
        adversarial = project(threat, context.images, moved)
    return adversarial.detach()
