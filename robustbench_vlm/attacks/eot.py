"""Attacks on random models over several draws: mean gradients (EOT), and accuracies over fresh draws.

A draw is one value of the random numbers of a model. The attack and the evaluation use different draws:

* Each gradient is the mean over several draws (expectation over transformation, arXiv:1707.07397), as in the version
  "rand" of AutoAttack (arXiv:2003.01690). Another iterate has other draws. Calls without a gradient, such as those of
  Square Attack, return the mean logits of fixed draws, so that their values can be compared.
* Another set of fixed draws decides when a stage stops, and which of the images of all stages is the strongest. A stage
  stops if all these draws are misclassified.
* Fresh draws, which neither the gradients nor the choice of the image used, give the reported numbers.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch, GradientMode, Stage
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import AdaptiveClassifier, SurrogateClassifier, checked_logits
from robustbench_vlm.attacks.projections import as_factor, distance
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate, differentiated
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN, draws_needed

_DIRECT = GradientMode("", "loop")


@runtime_checkable
class RandomClassifier(AdaptiveClassifier, Protocol):
    """A classifier whose random numbers depend only on the keys of its samples."""

    def redrawn(self, purpose: str, number: Tensor | int) -> "RandomClassifier":
        """Return the classifier with other random numbers: the draw `number` for `purpose`.

        `number` is one integer for all samples, or int64 (B,).
        """

    def select(self, index: Tensor) -> "RandomClassifier":
        """Return a classifier for only the samples at the positions `index`, int64 (N,)."""


@dataclass(frozen=True)
class SeededClassifier:
    """A classifier that draws from torch's global generator, with a separate seed for each sample.

    The images are classified one at a time, so the random numbers of a sample do not depend on the batch. Random
    numbers of other libraries, such as numpy, are not seeded.
    """

    classifier: Classifier
    keys: Tensor
    """The seed of each sample, int64 (B,)."""
    surrogate: Classifier | None = None
    """A given surrogate with useful gradients, such as the model without its defense."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        assert len(images) == len(self.keys), f"{len(images)} images for {len(self.keys)} samples"
        places, keys = torch.arange(len(images), device=images.device).split(1), self.keys.tolist()
        with _kept_random_state(images.device):
            return torch.cat([self._one(images, place, key) for place, key in zip(places, keys, strict=True)])

    def select(self, index: Tensor) -> "SeededClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        surrogate = None if self.surrogate is None else self.surrogate.select(index)
        return SeededClassifier(self.classifier.select(index), self.keys[index], surrogate)

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call for one sample."""
        return self.classifier.cost(gradient=gradient)

    def redrawn(self, purpose: str, number: Tensor | int) -> "SeededClassifier":
        """Return the classifier with the seeds of the draw `number` for `purpose`."""
        return replace(self, keys=randomness.redraw(self.keys, purpose, number))

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return a classifier with equal logits. Its gradient is computed in the mode `mode`."""
        return differentiated(self, self.surrogate, mode)

    def _one(self, images: Tensor, place: Tensor, key: int) -> Tensor:
        torch.manual_seed(key)
        return checked_logits(self.classifier.select(place), images[place])


@dataclass(frozen=True)
class AveragedClassifier:
    """The mean over several draws of a random classifier, for attacks."""

    classifier: RandomClassifier
    mode: GradientMode
    """The way to compute the gradient of one draw. `mode.draws` is the number of draws of each mean."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the mean logits of fixed draws, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        draws = (self._drawn("mean logits", number) for number in range(self.mode.draws))
        return torch.stack([checked_logits(each, images) for each in draws]).mean(dim=0)

    def draws_at(self, images: Tensor) -> list[Classifier]:
        """Return one classifier for each draw of the gradient at images (B, 3, H, W)."""
        number = numbers_of(images)
        return [self._drawn(f"gradient {draw}", number) for draw in range(self.mode.draws)]

    def select(self, index: Tensor) -> "AveragedClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return replace(self, classifier=self.classifier.select(index))

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of all draws of one call."""
        forward, backward = self._drawn("gradient 0", 0).cost(gradient=gradient)
        return self.mode.draws * forward, self.mode.draws * backward

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return the random classifier with a gradient that is computed in the mode `mode`, without a mean."""
        return self.classifier.with_gradient(mode)

    def _drawn(self, purpose: str, number: Tensor | int) -> Classifier:
        return self.classifier.redrawn(purpose, number).with_gradient(replace(self.mode, draws=1))


def numbers_of(images: Tensor) -> Tensor:
    """Return the number of the draws at each image (B, 3, H, W), int64 (B,). It is a hash of the pixels.

    Each iterate of an attack thus has new draws. A counter of the calls would depend on the batch, because the runs of
    a sample for several targets may share a batch.
    """
    words = (images.detach().double() * 2**24).to(torch.int64).flatten(1)
    weights = randomness.bits(torch.zeros_like(words[:1, 0]), 0, words.shape[1])
    return (words * weights).sum(dim=1)


@dataclass(frozen=True)
class Votes:
    """The predictions of a random classifier over several draws, for B images."""

    right: Tensor
    """The number of draws that predict the label, int64 (B,)."""
    rival: Tensor
    """The most frequent wrong class, int64 (B,)."""
    margin: Tensor
    """The mean over the draws of the label's logit minus the largest other logit, float32 (B,)."""


def votes(classifier: RandomClassifier, images: Tensor, labels: Tensor, purpose: str, draws: int) -> Votes:
    """Classify images (B, 3, H, W), one for each sample, with the draws 0 to `draws` - 1 for `purpose`.

    `labels` is int64 (B,). At equal counts, the rival is the class with the lowest index.
    """
    margins, counts = torch.zeros_like(images[:, 0, 0, 0]), None
    for number in range(draws):
        with torch.no_grad():
            logits = checked_logits(classifier.redrawn(purpose, number), images)
        if counts is None:
            counts = torch.zeros_like(logits, dtype=torch.int64)
        counts.scatter_add_(1, logits.argmax(dim=1, keepdim=True), torch.ones_like(labels[:, None]))
        margins -= margin(logits, labels, labels)
    assert counts is not None
    right = counts.gather(1, labels[:, None]).squeeze(1)
    return Votes(right, counts.scatter(1, labels[:, None], -1).argmax(dim=1), margins / draws)


@dataclass(frozen=True)
class DrawnClassifier:
    """A random classifier as the attacks see it: votes of fixed draws decide when a sample is misclassified.

    The logits contain only the result of the votes. The label's logit minus the logit of the most frequent wrong class
    is the share of draws that predict the label. To rank images with equal shares, it has a smaller second term, which
    increases with the mean margin. It is negative only if all draws are wrong.
    """

    random: RandomClassifier
    labels: Tensor
    """True classes, int64 (B,)."""
    num_classes: int
    draws: int
    """The number of votes."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the result of the votes as logits, float32 (B, C), for images (B, 3, H, W), one for each sample."""
        found = votes(self.random, images, self.labels, "votes", self.draws)
        share = found.right.to(found.margin) / self.draws
        strength = share + found.margin / (1 + found.margin.abs()) / (2 * self.draws)
        lowest = found.margin.new_full((len(images), self.num_classes), -2.0)
        lowest = lowest.scatter(1, found.rival[:, None], -strength[:, None])
        return lowest.scatter(1, self.labels[:, None], 0.0)

    def select(self, index: Tensor) -> "DrawnClassifier":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return replace(self, random=self.random.select(index), labels=self.labels[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of all votes."""
        forward, backward = self.random.cost(gradient=gradient)
        return self.draws * forward, self.draws * backward

    @property
    def surrogate(self) -> Classifier | None:
        """The surrogate that was given for a random classifier in memory, or None."""
        return self.random.surrogate if isinstance(self.random, SeededClassifier) else None

    def with_gradient(self, mode: GradientMode) -> Classifier:
        """Return a classifier whose gradients are means over `mode.draws` draws. The votes decide the verdicts.

        A transfer attack uses the gradient of the model without the defense, which has no random numbers.
        """
        seen = self.random.with_gradient(replace(mode, draws=1))
        if isinstance(seen, SurrogateClassifier):
            return SurrogateClassifier(seen.surrogate, self)
        return SurrogateClassifier(AveragedClassifier(self.random, mode), self)


@dataclass(frozen=True)
class DrawVerdicts:
    """The verdicts over fresh draws on B samples, in the order of the samples."""

    verdicts: Verdicts
    """A sample is robust if at least 99 % of the fresh draws predict the label, for the clean image and for the
    strongest image. The predicted class is the label in this case, and the most frequent wrong class in other cases."""
    clean_right: Tensor
    """The number of fresh draws that predict the label for the clean image, int64 (B,)."""
    right: Tensor
    """The number of fresh draws that predict the label for the strongest image, int64 (B,)."""


def attack_over_draws(
    classifier: RandomClassifier, batch: Batch, attack: Attack, *, draws: int, eot: int, batch_size: int
) -> DrawVerdicts:
    """Run an attack that `with_draws` returned, and classify the clean and the strongest images with fresh draws.

    `draws` is the number of fresh draws, and `eot` is the number of draws of each gradient and of the votes. Raises the
    errors of `attack_samples`.
    """
    attacked = DrawnClassifier(classifier, batch.labels, int(batch.num_classes.max()), eot)
    found = attack_samples(attacked, batch, attack, batch_size=batch_size)
    clean, strongest = (
        _fresh_votes(classifier, images, batch.labels, draws, batch_size) for images in (batch.images, found.strongest)
    )
    needed = draws_needed(draws)
    is_right, is_held = clean.right >= needed, strongest.right >= needed
    clean_prediction = torch.where(is_right, batch.labels, clean.rival)
    is_broken = is_right & ~is_held
    adversarial = torch.where(as_factor(is_broken), found.strongest, batch.images)
    broken_by = [
        (found.strongest_by[n] if broken else "") if right else CLEAN
        for n, (right, broken) in enumerate(zip(is_right.tolist(), is_broken.tolist(), strict=True))
    ]
    forward, backward = fresh_cost(classifier, draws)
    verdicts = replace(
        found,
        adversarial=adversarial,
        broken_by=tuple(broken_by),
        clean_prediction=clean_prediction,
        adversarial_prediction=torch.where(is_broken, strongest.rival, clean_prediction),
        margin=clean.margin,
        distance=distance(batch.threat, batch.images, adversarial),
        forward=found.forward + forward,
        backward=found.backward + backward,
    )
    return DrawVerdicts(verdicts, clean.right, strongest.right)


def fresh_cost(classifier: Classifier, draws: int) -> tuple[int, int]:
    """Return the forward and backward passes that classify a clean and an adversarial image with fresh draws."""
    forward, backward = classifier.cost(gradient=False)
    return 2 * draws * forward, 2 * draws * backward


def random_classifier(classifier: Classifier, keys: Tensor) -> RandomClassifier:
    """Return a classifier with random numbers for each sample. `keys`, int64 (B,), has the seed of each sample.

    A classifier without own keys draws from torch's global generator, so it becomes a `SeededClassifier`.
    """
    if isinstance(classifier, RandomClassifier):
        return classifier
    if isinstance(classifier, ClassifierWithSurrogate):
        return SeededClassifier(classifier.classifier, keys, classifier.surrogate)
    return SeededClassifier(classifier, keys)


def check_draws(attack: Attack) -> None:
    """Raise UserError for an attack of another library, because it does not say to which sample an image belongs."""
    # Only attack files set a gradient mode here. Their algorithms are those of this package.
    unsupported = [stage.name for stage in attack.stages if not (stage.mixes_datasets or stage.gradient_mode)]
    if unsupported:
        raise UserError(
            f"the draws of a random model depend on the sample, but {unsupported[0]} does not say which sample an image"
            " belongs to: choose an attack of this package, such as autoattack-rand or pgd-20"
        )


def with_draws(attack: Attack, eot: int) -> Attack:
    """Return the attack with gradients that are means over `eot` draws. Transfer attacks do not change."""
    return replace(attack, stages=tuple(_over_draws(stage, eot) for stage in attack.stages))


def _over_draws(stage: Stage, eot: int) -> Stage:
    # The draws of a batch belong to the samples of one dataset, so a batch cannot mix datasets.
    if stage.transfers:
        return replace(stage, mixes_datasets=False)
    mode = stage.gradient_mode or _DIRECT
    draws = 1 if mode.gradient == "transfer" else eot
    return replace(stage, gradient_mode=replace(mode, draws=draws), mixes_datasets=False)


def _fresh_votes(classifier: RandomClassifier, images: Tensor, labels: Tensor, draws: int, batch_size: int) -> Votes:
    parts = torch.arange(len(images), device=images.device).split(batch_size)
    found = [votes(classifier.select(part), images[part], labels[part], "fresh", draws) for part in parts]
    joined = (torch.cat([getattr(each, name) for each in found]) for name in ("right", "rival", "margin"))
    return Votes(*joined)


@contextlib.contextmanager
def _kept_random_state(device: torch.device) -> Iterator[None]:
    """Restore the state of torch's random generators at the end of the context."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
