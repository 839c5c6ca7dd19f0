"""Small random models and samples for the tests of the attacks."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat

SIDE = 8
SHORT: Mapping[str, Mapping[str, Any]] = {
    "apgd-ce": {"steps": 12},
    "apgd-t": {"steps": 12, "targets": 3},
    "fab-t": {"steps": 8, "targets": 2},
    "square": {"queries": 60},
}


def network(kind: str, classes: int, seed: int = 0) -> nn.Module:
    """Return a network with random weights that classifies images (B, 3, 8, 8). Equal arguments give equal weights."""
    pixels = 3 * SIDE * SIDE
    with torch.random.fork_rng():
        torch.manual_seed(1000 * seed + classes)
        layers: dict[str, list[nn.Module]] = {
            "linear": [nn.Flatten(), nn.Linear(pixels, classes)],
            "mlp": [nn.Flatten(), nn.Linear(pixels, 32), nn.Tanh(), nn.Linear(32, classes)],
            "conv": [nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128, classes)],
        }
        return nn.Sequential(*layers[kind]).eval()


def samples(model: nn.Module, classes: int, threat: Threat, count: int = 24) -> Batch:
    """Return `count` random samples with pixels in [0.3, 0.7]. Their labels are the predictions of the model."""
    generator = torch.Generator().manual_seed(count)
    dtype = next(model.parameters()).dtype
    images = (0.3 + 0.4 * torch.rand(count, 3, SIDE, SIDE, generator=generator)).to(dtype)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    keys = sample_keys(0, "made-up", [str(n) for n in range(count)])
    return Batch(images, labels, keys, threat, torch.full_like(labels, classes))


def threat_of(norm: str, eps: float) -> Threat:
    """Return a threat whose radius is nearly `eps`."""
    return Threat(norm, Fraction(eps).limit_denominator(10**6))


def halving_threat(model: nn.Module, classes: int, norm: str, times: float = 1) -> Threat:
    """Return a threat whose radius is `times` the median of `linear_distances` over the samples."""
    # The number of samples is even, so the median is not the distance of a sample. Rounding thus decides no verdict.
    batch = samples(model, classes, Threat(norm, Fraction(0)))
    return threat_of(norm, times * float(linear_distances(model, batch, classes - 1).quantile(0.5)))


def linear_distances(model: nn.Module, batch: Batch, targets: int) -> Tensor:
    """Return the distance of each sample to the nearest decision boundary of the linearised model, (B,).

    Only the boundaries to the `targets` classes with the highest logits except the label are considered.
    """
    images = batch.images.clone().requires_grad_()
    logits = model(images)
    order = logits.detach().scatter(1, batch.labels[:, None], -float("inf")).argsort(dim=1, descending=True)
    found = []
    for rank in range(min(targets, logits.shape[1] - 1, 12)):
        gap = (logits.gather(1, batch.labels[:, None]) - logits.gather(1, order[:, rank : rank + 1])).squeeze(1)
        (slope,) = torch.autograd.grad(gap.sum(), images, retain_graph=True)
        found.append(gap.detach() / slope.flatten(1).norm(1 if batch.threat.norm == "Linf" else 2, dim=1))
    return torch.stack(found).amin(dim=0)


def with_parameters(attack: Attack, parameters: Mapping[str, Mapping[str, Any]]) -> Attack:
    """Return a copy of the attack. `parameters` maps the name of a stage to the parameters to replace."""
    stages = tuple(
        replace(stage, parameters={**stage.parameters, **parameters.get(stage.name, {})}) for stage in attack.stages
    )
    return replace(attack, stages=stages)
