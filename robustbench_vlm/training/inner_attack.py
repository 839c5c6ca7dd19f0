"""The inner attack of adversarial training: PGD on the per-sample loss of a defense."""

import torch
from torch import Tensor

from robustbench_vlm.attacks.projections import project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.defenses.base import InnerAttack, LossContext
from robustbench_vlm.models.precision import products


def inner_attack(context: LossContext, inner: InnerAttack, threat: Threat) -> Tensor:
    """Make adversarial images, float32 (B, 3, H, W) in [0, 1], by ascent along the sign of the loss gradient.

    Each step of the attack costs one forward and one backward pass of every image. The gradients of the weights are not
    computed.
    """
    start = (randomness.uniform(context.keys, 0, context.images.shape[1:]) * 2 - 1) * float(threat.eps)
    adversarial = context.images + start
    if inner.clamp_start:
        adversarial = adversarial.clamp(0, 1)
    direction = torch.zeros_like(start)
    for _ in range(inner.steps):
        gradient = input_gradient(context, inner, adversarial)
        direction = (inner.momentum * direction + gradient.sign()).sign()
        adversarial = project(threat, context.images, adversarial + float(inner.step(threat.eps)) * direction)
    return adversarial


def input_gradient(context: LossContext, inner: InnerAttack, images: Tensor) -> Tensor:
    """Return the gradient of the attacked loss at images (B, 3, H, W), with the shape and dtype of the images.

    The forward and the backward pass run in the precision of the inner attack.
    """
    images = images.detach().requires_grad_()
    with products(inner.precision, images.device.type):
        # On a CPU, losses can be float16, and their sum could overflow.
        loss = inner.loss(context, images).to(images.dtype).sum()
    if inner.mean_loss:
        loss = loss / context.total(torch.tensor(float(len(images)), device=images.device))
    gradient: Tensor
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient
