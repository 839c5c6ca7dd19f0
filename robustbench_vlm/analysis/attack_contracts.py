"""The contracts of attacks: verdicts on linear classifiers, the ball of the threat model, batch sizes and passes."""

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.projections import distance
from robustbench_vlm.core.classifier_interface import Classifier, as_classifier
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.core.threat import Threat

PASSES = 0.01
"""Largest relative error of the number of passes that an attack reports."""


def check_attack(name: str, track: str) -> Iterator[CheckResult]:
    """Check the registered attack `name` on linear classifiers. `track` is not used."""
    attack = load_attack(name)
    norm = attack.norms[0]
    classifier, batch = linear_classifier(Threat(norm, Fraction(0)), num_classes=5)
    verdict = attack_samples(classifier, batch, attack, batch_size=4)
    yield CheckResult(
        "the attack breaks no sample at eps 0", set(verdict.broken_by) <= {"", CLEAN}, str(set(verdict.broken_by))
    )
    # At the first radius, the attack succeeds for only some samples. The second radius is so large that the attack
    # succeeds against every linear classifier.
    middle, large = (Fraction(4, 255), Fraction(1, 2)) if norm == "Linf" else (Fraction(1, 5), Fraction(8))
    yield from _at(attack, Threat(norm, middle))
    yield from _calls(attack, Threat(norm, middle))
    for num_classes in (5, 2):
        classifier, batch = linear_classifier(Threat(norm, large), num_classes=num_classes)
        broken = _broken(attack_samples(classifier, batch, attack, batch_size=4))
        statement = f"the attack breaks a linear classifier of {num_classes} classes at {batch.threat}"
        yield CheckResult(statement, broken > 0, f"{broken} of {len(batch.labels)}")


def _at(attack: Attack, threat: Threat) -> Iterator[CheckResult]:
    """Check the contracts of an attack under one threat model (norm and radius)."""
    classifier, batch = linear_classifier(threat, num_classes=5)
    before = torch.get_rng_state()
    first, again, alone = (attack_samples(classifier, batch, attack, batch_size=batch_size) for batch_size in (4, 4, 1))
    untouched = torch.equal(before, torch.get_rng_state())
    raw = attack.stages[0].run(classifier, batch, 4).adversarial
    yield CheckResult(
        f"the attack returns finite images at {threat}",
        raw.shape == batch.images.shape and bool(torch.isfinite(raw).all()),
    )
    size = float(distance(threat, batch.images, first.adversarial).max())
    yield CheckResult(
        f"adversarial images are within {threat}", size <= float(threat.eps) + 1e-6, f"distance {size:.4f}"
    )
    same = first.broken_by == again.broken_by and torch.equal(first.adversarial, again.adversarial)
    yield CheckResult(f"the attack gives the same result twice at {threat}", same)
    yield CheckResult(
        f"the batch size does not change a verdict of the attack at {threat}", first.broken_by == alone.broken_by
    )
    yield CheckResult(f"the attack does not change torch's random state at {threat}", untouched)


class _CountedCalls:
    """A classifier that counts its calls, each with images [B, 3, H, W] and logits [B, C]."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.forward = 0
        """Number of classified images."""
        self.backward = 0
        """Number of images whose gradient was computed."""
        self.most = 0
        """Largest number of images of a call."""

    def __call__(self, images: Tensor) -> Tensor:
        self.forward += len(images)
        self.most = max(self.most, len(images))
        logits: Tensor = self._classifier(images)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def _calls(attack: Attack, threat: Threat) -> Iterator[CheckResult]:
    """Check that every stage obeys the batch size and reports the passes that it uses."""
    classifier, batch = linear_classifier(threat, num_classes=5)
    batch_size, most = len(batch.labels) - 1, 0
    seen, reported = [0, 0], [0, 0]
    for stage in attack.stages:
        counted = _CountedCalls(classifier)
        outcome = stage.run(as_classifier(counted), batch, batch_size)
        most = max(most, counted.most)
        seen = [seen[0] + counted.forward, seen[1] + counted.backward]
        reported = [reported[0] + int(outcome.forward.sum()), reported[1] + int(outcome.backward.sum())]
    detail = f"{most} images in one call, the batch size is {batch_size}"
    yield CheckResult("no call of the model has more images than the batch size", most <= batch_size, detail)
    detail = f"reported {reported[0]} forward and {reported[1]} backward, used {seen[0]} and {seen[1]}"
    # Adapters of libraries report the mean of a batch, so rounding may change the sum by one pass per sample.
    close = all(
        abs(told - used) <= max(PASSES * used, len(batch.labels)) for told, used in zip(reported, seen, strict=True)
    )
    yield CheckResult("the attack reports the passes that it uses", close, detail)


def _broken(verdict: Verdicts) -> int:
    """Return the number of samples for which a stage of the attack found a misclassified image."""
    return sum(stage not in ("", CLEAN) for stage in verdict.broken_by)


def linear_classifier(threat: Threat, *, num_classes: int) -> tuple[Classifier, Batch]:
    """Return a linear classifier, and a batch of 4 images, float32 [4, 3, 8, 8], with the labels that it predicts.

    The classifier computes in float64. With float32, rounding may make the verdicts depend on the batch size.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=random)
    weight = torch.randn(num_classes, 3 * 8 * 8, generator=random, dtype=torch.float64)

    def classifier(inputs: Tensor) -> Tensor:
        return ((inputs.flatten(1).to(torch.float64) - 0.5) @ weight.T).to(inputs.dtype)

    keys = sample_keys(0, "contract", [str(n) for n in range(len(images))])
    labels = classifier(images).argmax(dim=1)
    return as_classifier(classifier), Batch(images, labels, keys, threat, torch.full_like(labels, num_classes))
