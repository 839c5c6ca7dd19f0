"""Attack any classifier from Python, without a registered model or a track.

A classifier is a torch module or a function from images to logits.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Attack, Batch
from robustbench_vlm.attacks.eot import (
    DrawVerdicts,
    RandomClassifier,
    attack_over_draws,
    check_draws,
    random_classifier,
    with_draws,
)
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.other_sample_start import needs_other_images, with_other_images
from robustbench_vlm.attacks.sanity import sanity_warnings
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate
from robustbench_vlm.core.classifier_interface import ClassifierLike, as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.records import CLEAN, Accuracy
from robustbench_vlm.core.threat import Threat, exact_eps, norm_named
from robustbench_vlm.engine.fresh_draws import check_draw_counts
from robustbench_vlm.engine.warnings import SanityWarning, attack_warnings, explain
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.protocols.base import DEFAULT_EOT

_BATCHES_AT_ONCE = 4
"""Number of batches that are attacked together. Samples with a successful attack are removed. The remaining samples of
all these batches are then regrouped into full batches."""


@dataclass(frozen=True)
class DrawCounts:
    """The numbers of correct fresh draws of N samples."""

    draws: int
    """The number of fresh draws for each image."""
    clean_right: Tensor
    """The number of draws that classify each clean image correctly, int64 [N]."""
    right: Tensor
    """The number of draws that classify the strongest image of each sample correctly, int64 [N]."""

    @property
    def clean(self) -> Accuracy:
        """The mean clean accuracy over samples and draws, with its 95 % interval (`Accuracy.of_shares`)."""
        return Accuracy.of_shares((self.clean_right.double() / self.draws).tolist())

    @property
    def robust(self) -> Accuracy:
        """The mean robust accuracy over samples and draws, with its 95 % interval (`Accuracy.of_shares`)."""
        return Accuracy.of_shares((self.right.double() / self.draws).tolist())


@dataclass(frozen=True)
class AttackResult:
    """The outcome of an attack on N samples, in the order of the samples."""

    robust: Tensor
    """True for each robust sample, bool [N]. A sample is robust if the model classifies the clean image correctly and
    no stage of the attack finds a misclassified image.
    """
    adversarial: Tensor
    """One image per sample, float32 [N, 3, H, W] in [0, 1]. If the attack found a misclassified image, it is
    this image. For other samples, it is the clean image.
    """
    broken_by: tuple[str, ...]
    """For each sample, the name of the attack stage that found a misclassified image. It is "clean" if the clean image
    is misclassified, and "" if the sample is robust."""
    clean_prediction: Tensor
    """The predicted class of each clean image, int64 [N]."""
    adversarial_prediction: Tensor
    """The predicted class of each image in `adversarial`, int64 [N]."""
    distance: Tensor
    """The size of each perturbation in the norm of the threat model, float32 [N]. Pixels are in [0, 1]."""
    passes: Tensor
    """The number of forward and backward passes for each sample, int64 [N, 2]. The sanity checks are not counted."""
    warnings: tuple[str, ...]
    """Codes of warnings about the result. If a warning is about only 3 samples, ":3" is added to its code."""
    draws: DrawCounts | None = None
    """The correct fresh draws of a random classifier. It is None without draws. If it is given, a sample is robust if
    at least 99 % of the draws are correct, and `robust_accuracy` is the share of such samples."""

    @property
    def clean_accuracy(self) -> Accuracy:
        """The clean accuracy with its 95 % Wilson interval."""
        return Accuracy.of_counts(sum(stage != CLEAN for stage in self.broken_by), len(self.broken_by))

    @property
    def robust_accuracy(self) -> Accuracy:
        """The robust accuracy with its 95 % Wilson interval."""
        return Accuracy.of_counts(int(self.robust.sum()), len(self.broken_by))

    def explain(self) -> tuple[SanityWarning, ...]:
        """Return the meaning of each warning in `warnings`, and advice."""
        return tuple(explain(code) for code in self.warnings)


def attack_classifier(
    classifier: ClassifierLike,
    images: Any,
    labels: Any,
    *,
    eps: float | str | Fraction,
    attack: str | PathLike[str] | Attack = "autoattack",
    surrogate: ClassifierLike | None = None,
    norm: str = "Linf",
    batch_size: int = 64,
    seed: int = 0,
    draws: int = 0,
    eot: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> AttackResult:
    """Attack a classifier on images in memory, and decide for each sample whether it is robust.

    This function uses the same attacks, verdicts and sanity checks as `evaluate`. It needs neither a track nor a
    registered model. It does not write records, so its result cannot be submitted.

    Args:
        classifier: A torch module or a function from images, float32 [B, 3, H, W] in [0, 1], to logits, float [B, C].
            It must include resize and normalisation. Put a module into eval mode before the call.
        images: float [N, 3, H, W] in [0, 1], a tensor or an array.
        labels: int [N], the index of the correct logit of each image.
        eps: Radius for pixels in [0, 1], such as "4/255", 4/255 or 0.5.
        attack: Name of an attack (`vlmbench list attacks`), path of an attack file, or an Attack.
        surrogate: A function with useful gradients for the same classes, such as the network without its defense. Only
            attacks with a stage on a surrogate use it: `adaptive`, and attack files.
        norm: "Linf" or "L2".
        batch_size: Number of images in each forward pass.
        seed: Seed of the random numbers. The random numbers of a sample depend only on this seed and the sample's
            index.
        draws: The number of fresh draws with which a random classifier classifies each image, such as 100. Its random
            numbers must come from torch's global generator. 0 is for classifiers without random numbers.
        eot: The number of draws of which the attacks take the mean gradient. 0 uses 20.
        on_progress: Called with the number of finished samples after each group of batches.

    Raises:
        UserError: An argument cannot be used (the message gives the accepted forms), or logits are not finite.
    """
    chosen = load_attack(fspath(attack)) if isinstance(attack, str | PathLike) else attack
    if not isinstance(chosen, Attack):
        raise UserError(
            f"attack must be the name of an attack, an attack file or an Attack, got {type(attack).__name__}: run"
            " `vlmbench list attacks` to see the names"
        )
    threat = Threat(norm_named(norm), exact_eps(eps))
    chosen.check_norm(threat.norm)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size must be a positive integer, got {batch_size!r}: leave it out to use 64")
    _check_callable(classifier)
    if draws or eot:
        if draws == 0:
            raise UserError(
                f"eot is the number of draws of each gradient and needs draws, got eot={eot}: add draws=100"
            )
        check_draw_counts(draws, eot)
        check_draws(chosen)
    if surrogate is not None:
        _check_surrogate(chosen, surrogate)
    batch = batch_in_memory(classifier, images, labels, threat, seed)
    if needs_other_images(chosen):
        batch = with_other_images(batch, batch.images, batch.labels)
    count, device = len(batch.labels), batch.labels.device
    whole = as_classifier(classifier)
    if surrogate is not None:
        _check_classes(surrogate, batch)
        whole = ClassifierWithSurrogate(whole, as_classifier(surrogate))
    found: list[Verdicts] = []
    raised: list[tuple[str, ...]] = []
    drawn: list[DrawVerdicts] = []
    on_progress(Progress(0, count, label=chosen.name))
    with arithmetic():
        for part in torch.arange(count, device=device).split(_BATCHES_AT_ONCE * batch_size):
            own, asked = batch.at(part), whole.select(part)
            if draws:
                random = random_classifier(asked, own.keys)
                drawn.append(_over_draws(random, own, chosen, draws=draws, eot=eot, batch_size=batch_size))
                asked = random
            raised += sanity_warnings(asked, own, batch_size=batch_size)
            found.append(drawn[-1].verdicts if draws else attack_samples(asked, own, chosen, batch_size=batch_size))
            on_progress(Progress(int(part[-1]) + 1, count, label=chosen.name))
    if draws and _uses_batch_statistics(classifier):
        # The images of a random model are classified one at a time, so the check above cannot find this.
        raised = [(*codes, "batch-dependent") for codes in raised]
    result = _result(chosen, found, raised)
    if not draws:
        return result
    clean_right, right = (torch.cat([getattr(each, name) for each in drawn]) for name in ("clean_right", "right"))
    return replace(result, draws=DrawCounts(draws, clean_right, right))


def batch_in_memory(classifier: ClassifierLike, images: Any, labels: Any, threat: Threat, seed: int) -> Batch:
    """Return images float [N, 3, H, W] in [0, 1] and labels int [N] as a batch on the device of the classifier.

    The random numbers of a sample depend only on `seed` and the sample's index. Raises UserError if the classifier,
    the images or the labels cannot be used.
    """
    _check_callable(classifier)
    device = _device(classifier, images)
    pixels = _checked_images(images).to(device)
    target = _checked_labels(labels, len(pixels)).to(device)
    num_classes = _count_classes(classifier, pixels, target)
    keys = sample_keys(seed, "", [str(number) for number in range(len(pixels))]).to(device)
    return Batch(pixels, target, keys, threat, torch.full_like(target, num_classes))


def _over_draws(
    random: RandomClassifier, batch: Batch, attack: Attack, *, draws: int, eot: int, batch_size: int
) -> DrawVerdicts:
    count = eot or DEFAULT_EOT
    return attack_over_draws(random, batch, with_draws(attack, count), draws=draws, eot=count, batch_size=batch_size)


def _result(attack: Attack, parts: Sequence[Verdicts], raised: Sequence[tuple[str, ...]]) -> AttackResult:
    def joined(field: Callable[[Verdicts], Tensor]) -> Tensor:
        return torch.cat([field(part) for part in parts])

    broken_by = tuple(stage for part in parts for stage in part.broken_by)
    of_stages = [codes for part in parts for codes in part.warnings]
    counts = Counter(code for both in zip(raised, of_stages, strict=True) for code in {*both[0], *both[1]})
    return AttackResult(
        robust=joined(lambda part: part.robust),
        adversarial=joined(lambda part: part.adversarial),
        broken_by=broken_by,
        clean_prediction=joined(lambda part: part.clean_prediction),
        adversarial_prediction=joined(lambda part: part.adversarial_prediction),
        distance=joined(lambda part: part.distance),
        passes=torch.stack([joined(lambda part: part.forward), joined(lambda part: part.backward)], dim=1),
        warnings=attack_warnings(attack, broken_by, counts),
    )


def _check_callable(classifier: Any) -> None:
    """Raise UserError if a classifier is not a function, such as the name of a model, or a model without prompts."""
    if callable(classifier):
        return
    expected = "attack needs a function from images [B, 3, H, W] to logits [B, C]"
    if isinstance(classifier, str | PathLike):
        advice = f"use load_model({str(classifier)!r}).classifier(prompts) for a model with this name"
    elif hasattr(classifier, "classifier"):
        advice = "use model.classifier(prompts), with one prompt per class"
    else:
        advice = "give a torch module or a function"
    raise UserError(f"{expected}, got {type(classifier).__name__}: {advice}")


def _check_surrogate(attack: Attack, surrogate: Any) -> None:
    """Raise UserError if the attack has no stage on a surrogate, or if the surrogate is not a function."""
    if not any(stage.transfers or stage.gradient_mode is not None for stage in attack.stages):
        raise UserError(
            f"a surrogate was given, but the attack {attack.name!r} has no stage on a surrogate: use the attack"
            " adaptive, or leave surrogate out"
        )
    _check_callable(surrogate)


def _check_classes(surrogate: ClassifierLike, batch: Batch) -> None:
    """Raise UserError if the surrogate does not return logits for the classes of the classifier."""
    num_classes, first = int(batch.num_classes[0]), batch.images[:2]
    with torch.no_grad():
        logits: Any = as_classifier(surrogate)(first)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (len(first), num_classes):
        raise UserError(
            f"the surrogate must return logits of the classifier's {num_classes} classes, got {shape} for"
            f" {len(first)} images: give a surrogate with the same classes in the same order"
        )


def _uses_batch_statistics(classifier: ClassifierLike) -> bool:
    """Return whether the classifier is a module with batch normalisation that uses the statistics of the batch."""
    return isinstance(classifier, nn.Module) and any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in classifier.modules()
    )


def _device(classifier: ClassifierLike, images: Any) -> torch.device:
    """Return the device of the classifier's parameters or buffers.

    If the classifier has no parameters or buffers, return the device of the images.
    """
    if isinstance(classifier, nn.Module):
        for tensor in (*classifier.parameters(), *classifier.buffers()):
            return tensor.device
    return images.device if isinstance(images, Tensor) else torch.device("cpu")


def _checked_images(given: Any) -> Tensor:
    expected = "images must be float [N, 3, H, W] in [0, 1]"
    try:
        images = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{expected}, got {type(given).__name__}: give a tensor or an array ({error})") from None
    if images.dim() != 4 or images.shape[1] != 3 or not images.numel():
        raise UserError(f"{expected}, got the shape {tuple(images.shape)}: stack N images with three channels")
    if not images.is_floating_point():
        raise UserError(f"{expected}, got {images.dtype}: convert bytes with `images.float() / 255`")
    if not torch.isfinite(images).all():
        raise UserError(f"{expected}, got NaN or infinite values: check the code that reads the images")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{expected}, got values from {low:.4g} to {high:.4g}: if pixels are in 0 to 255, divide them by 255,"
            " and do not normalise them, because the classifier must do that"
        )
    return images.to(torch.float32).contiguous()


def _checked_labels(given: Any, count: int) -> Tensor:
    expected = f"labels must be int [{count}], one class index per image"
    try:
        labels = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{expected}, got {type(given).__name__}: give a tensor, array or list ({error})") from None
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"{expected}, got {labels.dtype} {list(labels.shape)}: give the index of each correct logit")
    return labels.to(torch.int64)


def _count_classes(classifier: ClassifierLike, images: Tensor, labels: Tensor) -> int:
    """Return the number of classes, from the logits of the first two images.

    Raises UserError if the classifier does not return logits, or if a label is not a class index.
    """
    first = images[:2]
    with torch.no_grad():
        logits: Any = as_classifier(classifier).select(torch.arange(len(first), device=first.device))(first)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(first):
        got = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the classifier must return logits [B, C] for images [B, 3, H, W], got {got} for {len(first)} images: wrap"
            " it in a function that returns the logits"
        )
    if logits.is_complex():
        raise UserError(f"the classifier must return real logits, got {logits.dtype}: return the real part")
    if logits.shape[1] < 2:
        raise UserError(
            f"the classifier must have two or more classes, got logits of shape {tuple(logits.shape)}: without another"
            " class, no attack can change a prediction"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"labels must be in 0 to {logits.shape[1] - 1}, the classifier's {logits.shape[1]} classes, got"
            f" {int(labels.min())} to {int(labels.max())}: give the index of each correct logit"
        )
    return logits.shape[1]
