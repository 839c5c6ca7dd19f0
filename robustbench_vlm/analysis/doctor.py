"""Self-tests of an installation (`vlmbench doctor`). If a self-test fails, do not trust results from this machine."""

import copy
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn

from robustbench_vlm.analysis.check_result import CheckResult
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.model_cache import classifier_of, expect_weights
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.device import choose_device
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.tracks import TRACKS, Track

ABOUT_ZERO = 0.05
"""Largest robust accuracy that a self-test accepts as about 0."""
_ATTACK, _QUICK_ATTACK, _SAMPLES = "apgd-ce", "pgd-10", 32


def doctor(track: str = "mini", *, model: str = "", dataset: str = "") -> list[CheckResult]:
    """Run the self-tests on an undefended model and a dataset.

    By default, the track's undefended model and its first dataset are used. On the track "mini" the tests take seconds.
    Raises UserError for unknown names, or if the track does not define datasets and `dataset` is not given.
    """
    expect_weights(model)
    found: Track = TRACKS.load(track)
    if not dataset and not found.datasets:
        raise UserError(
            f"the track {track!r} does not define datasets, but the self-tests need one: leave --track out to use the"
            f" track 'mini', or call robustbench_vlm.analysis.doctor.doctor({track!r}, dataset=NAME) in Python"
        )
    request = Request(
        models=(model or found.base,),
        attacks=(_ATTACK,),
        track=track,
        datasets=(dataset or found.datasets[0],),
        eps=(max(found.eps),),
        samples=_SAMPLES,
        resources=Resources(workers=1),
    )
    (cell,) = resolve(request).cells
    device = choose_device("")
    batch, _ = load_batch(cell, 0, len(cell), device=device)
    with arithmetic():
        classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, device).plain
        return self_tests(classifier, batch, cell.attack)


def self_tests(classifier: nn.Module, batch: Batch, attack: Attack) -> list[CheckResult]:
    """Run the self-tests on an undefended classifier.

    The eps of the batch must be so large that attacks make the classifier misclassify almost all images.
    """
    quick = load_attack(_QUICK_ATTACK)
    return [
        _falls(classifier, batch, attack),
        _nothing_at_zero(classifier, batch, quick),
        _all_at_one(classifier, batch, quick),
        _batch_size_is_free(classifier, batch, quick),
    ]


def _falls(classifier: nn.Module, batch: Batch, attack: Attack) -> CheckResult:
    clean, robust = _accuracies(attack_samples(classifier, batch, attack, batch_size=64))
    name = f"the robust accuracy of an undefended model is about 0 under {attack.name} at {batch.threat}"
    return CheckResult(name, robust <= ABOUT_ZERO < clean, f"clean {clean:.3f}, robust {robust:.3f}")


def _nothing_at_zero(classifier: nn.Module, batch: Batch, attack: Attack) -> CheckResult:
    still = replace(batch, threat=Threat(batch.threat.norm, Fraction(0)))
    clean, robust = _accuracies(attack_samples(classifier, still, attack, batch_size=64))
    return CheckResult(
        "at eps 0, the robust accuracy equals the clean accuracy",
        robust == clean,
        f"clean {clean:.3f}, robust {robust:.3f}",
    )


def _all_at_one(classifier: nn.Module, batch: Batch, attack: Attack) -> CheckResult:
    whole = replace(batch, threat=Threat("Linf", Fraction(1)))
    clean, robust = _accuracies(attack_samples(classifier, whole, attack, batch_size=64))
    return CheckResult(
        "at eps 1, the robust accuracy is about 0", robust <= ABOUT_ZERO, f"clean {clean:.3f}, robust {robust:.3f}"
    )


def _batch_size_is_free(classifier: nn.Module, batch: Batch, attack: Attack) -> CheckResult:
    # This test uses float64, because float32 rounding depends on the batch size. Rounding may change a prediction
    # at the decision boundary.
    exact = copy.deepcopy(classifier).to(torch.float64)
    # At a small radius, the attack succeeds for only some samples. If verdicts depend on the batch size, it succeeds
    # for different samples with each batch size.
    small = replace(
        batch, images=batch.images.to(torch.float64), threat=replace(batch.threat, eps=batch.threat.eps / 8)
    )
    sizes = (1, 3, len(batch.labels))
    verdicts = [attack_samples(exact, small, attack, batch_size=size).broken_by for size in sizes]
    differ = sum(len(set(each)) > 1 for each in zip(*verdicts, strict=True))
    detail = f"{differ} of {len(batch.labels)} verdicts differ between batches of {sizes[0]}, {sizes[1]} and {sizes[2]}"
    return CheckResult("verdicts are independent of the batch size", differ == 0, detail)


def _accuracies(verdict: Verdicts) -> tuple[float, float]:
    """Return clean and robust accuracy in [0, 1]."""
    n = len(verdict.broken_by)
    return sum(stage != CLEAN for stage in verdict.broken_by) / n, sum(stage == "" for stage in verdict.broken_by) / n
