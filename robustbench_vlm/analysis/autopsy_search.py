"""Search for the strongest attack on held-out samples by successive halving (Jamieson and Talwalkar, arXiv:1502.07943).

The attack that the search chooses then attacks the reported samples once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from robustbench_vlm.analysis.autopsy_space import (
    MAX_STEPS,
    search_space,
    smaller,
    steps_of,
    with_margin_of_safety,
    with_steps,
)
from robustbench_vlm.attacks.attack_file import AttackFile, StageEntry, attack_of
from robustbench_vlm.attacks.automatic_surrogate import StraightThrough
from robustbench_vlm.attacks.base import Attack, Batch, GradientWay
from robustbench_vlm.attacks.evaluate import Verdicts, attack_samples
from robustbench_vlm.attacks.losses import margin
from robustbench_vlm.attacks.model import logits_in_batches
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.random import derive
from robustbench_vlm.core.records import CLEAN, Accuracy
from robustbench_vlm.engine.cost import attack_passes
from robustbench_vlm.test_time.defended_model import DefendedClassifier

_KEPT = 3
"""One of this many attacks stays in the search after each round."""
_LEAST_STEPS = 5
_FEWEST = 8
"""The smallest number of held-out samples in a round."""
_TOLERANCE = 0.02
"""A smaller attack may leave this much more of the margin of each robust sample, as a share of its clean margin."""


@dataclass(frozen=True)
class Subject:
    """The samples of one dataset, and the classifier that is attacked on them."""

    dataset: str
    classifier: Classifier
    batch: Batch

    def part(self, index: torch.Tensor) -> "Subject":
        """Return only the samples at the positions `index`, int64 (N,)."""
        return Subject(self.dataset, self.classifier.select(index), self.batch.at(index))


@dataclass(frozen=True)
class Round:
    """One round of the search."""

    attacks: int
    """The number of attacks that were compared."""
    samples: int
    """The number of held-out samples, which are all classified correctly."""
    steps: tuple[int, int]
    """The smallest and the largest number of steps."""
    passes: int
    """The passes of the search up to the end of this round."""
    robust: int
    """The number of samples that are robust under the best attack of the round."""
    best: StageEntry


@dataclass(frozen=True)
class Search:
    """The result of a search."""

    space: tuple[StageEntry, ...]
    """The attacks of the first round."""
    left_out: tuple[StageEntry, ...]
    """Attacks that were left out, because the budget was spent."""
    rounds: tuple[Round, ...]
    chosen: StageEntry
    """The smallest attack that is as strong as the strongest one with `MAX_STEPS` steps, with a margin of safety."""
    passes: int
    """Forward and backward passes of the whole search."""


@dataclass(frozen=True)
class _Trial:
    """The result of one attack on held-out samples."""

    entry: StageEntry
    robust: int
    left: float
    """The sum over the robust samples of the margin after the attack, as a share of the clean margin."""
    passes: int

    @property
    def rank(self) -> tuple[int, float, int]:
        """The sort key: the strongest attack has the lowest one."""
        return self.robust, self.left, self.passes


class _Searcher:
    def __init__(self, subjects: Sequence[Subject], batch_size: int) -> None:
        self.subjects, self.batch_size, self.passes = subjects, batch_size, 0

    def trial(self, entry: StageEntry, subjects: Sequence[Subject]) -> _Trial:
        robust, left, passes = 0, 0.0, 0
        for subject in subjects:
            found = attack_samples(subject.classifier, subject.batch, one_stage(entry), batch_size=self.batch_size)
            passes += int(found.forward.sum() + found.backward.sum())
            survives = found.robust.nonzero().squeeze(1)
            robust += len(survives)
            left += self._margin_left(subject, found, survives)
        self.passes += passes
        return _Trial(entry, robust, left, passes)

    def round(self, entries: Sequence[StageEntry], count: int, passes: float) -> tuple[list[_Trial], Round]:
        """Compare attacks on `count` samples, in the given order, until `passes` passes are spent."""
        end, trials = self.passes + passes, list[_Trial]()
        subjects = first_samples(self.subjects, count)
        n = sum(len(each.batch.labels) for each in subjects)
        for entry in entries:
            if self.passes < end or not trials:
                trials.append(self.trial(self.sized(entry, passes / len(entries) / n), subjects))
        steps = [steps_of(each.entry) for each in trials]
        best = min(trials, key=lambda each: each.rank)
        return trials, Round(len(trials), n, (min(steps), max(steps)), self.passes, best.robust, best.entry)

    def sized(self, entry: StageEntry, passes: float) -> StageEntry:
        """Return the attack with as many steps as `passes` per sample allow."""
        one, two = (self._cost(with_steps(entry, steps)) for steps in (1, 2))
        return with_steps(entry, max(_LEAST_STEPS, min(MAX_STEPS, int(1 + (passes - one) / max(two - one, 1)))))

    def shrunk(self, entry: StageEntry, passes: float) -> StageEntry:
        """Return the smallest attack that is as strong as `entry` on all samples, with a margin of safety.

        The search for it stops after `passes` passes.
        """
        end, best = self.passes + passes, self.trial(entry, self.subjects)
        tolerated = best.left + _TOLERANCE * best.robust
        candidates = smaller(best.entry)
        while (candidate := next(candidates, None)) is not None and self.passes < end:
            found = self.trial(candidate, self.subjects)
            if found.robust <= best.robust and found.left <= tolerated:
                best, candidates = found, smaller(candidate)
        return with_margin_of_safety(best.entry, robust=best.robust)

    def _cost(self, entry: StageEntry) -> int:
        """Return the passes of an attack on one robust sample of the first dataset."""
        subject = self.subjects[0]
        return sum(attack_passes(one_stage(entry), int(subject.batch.num_classes[0]), subject.classifier))

    def _margin_left(self, subject: Subject, found: Verdicts, survives: torch.Tensor) -> float:
        if not len(survives):
            return 0.0
        labels = subject.batch.labels[survives]
        own = subject.classifier.select(survives)
        logits = logits_in_batches(own, found.strongest[survives], self.batch_size)
        self.passes += len(survives) * sum(own.cost(gradient=False))
        share = -margin(logits, labels, labels) / found.margin[survives].clamp_min(1e-30)
        return float(share.clamp(0, 1).sum())


def search(
    subjects: Sequence[Subject],
    ways: Sequence[GradientWay],
    *,
    budget: int,
    batch_size: int,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
    """Search for the smallest attack that is as strong as the strongest one in the search space.

    `subjects` are held-out samples, which the model classifies correctly. `budget` is a number of passes. The first
    round gets half of it. The other rounds and the last step, which makes the attack smaller, get equal shares of the
    rest. `on_round` is called with the number of finished rounds and their total.
    """
    total = sum(len(each.batch.labels) for each in subjects)
    space = search_space(
        ways, is_random=any(map(is_random, subjects)), has_objective=all(map(_has_objective, subjects))
    )
    sizes = _round_sizes(len(space))
    searcher, entries, rounds = _Searcher(subjects, batch_size), list(space), []
    left_out: tuple[StageEntry, ...] = ()
    for number, size in enumerate(sizes):
        on_round(number, len(sizes) + 1)
        count = max(_FEWEST, total >> (len(sizes) - 1 - number))
        # The first round compares all attacks, so it gets half of the budget.
        share = (budget - searcher.passes) / (len(sizes) + 1 - number if number else 2)
        trials, each = searcher.round(entries[:size], count, share)
        left_out = left_out if number else space[len(trials) :]
        entries = [trial.entry for trial in sorted(trials, key=lambda trial: trial.rank)]
        rounds.append(each)
    on_round(len(sizes), len(sizes) + 1)
    chosen = searcher.shrunk(with_steps(entries[0], MAX_STEPS), budget - searcher.passes)
    compared = space[: len(space) - len(left_out)]
    return Search(compared, left_out, tuple(rounds), chosen, searcher.passes)


def measure(subjects: Sequence[Subject], attack: Attack, batch_size: int) -> tuple[Accuracy, Accuracy, int]:
    """Attack samples once. Return the clean and the robust accuracy as means over the datasets, and the passes."""
    found = [attack_samples(each.classifier, each.batch, attack, batch_size=batch_size) for each in subjects]
    clean = [Accuracy.of_counts(sum(stage != CLEAN for stage in each.broken_by), len(each.broken_by)) for each in found]
    robust = [Accuracy.of_counts(int(each.robust.sum()), len(each.broken_by)) for each in found]
    passes = sum(int(each.forward.sum() + each.backward.sum()) for each in found)
    return Accuracy.mean(clean), Accuracy.mean(robust), passes


def correct_samples(subjects: Sequence[Subject], batch_size: int) -> list[Subject]:
    """Return the samples that the model classifies correctly. Raises UserError if there are none."""
    kept = []
    for subject in subjects:
        logits = logits_in_batches(subject.classifier, subject.batch.images, batch_size)
        index = (logits.argmax(dim=1) == subject.batch.labels).nonzero().squeeze(1)
        kept += [subject.part(index)] if len(index) else []
    if not kept:
        count = sum(len(each.batch.labels) for each in subjects)
        raise UserError(
            f"the model misclassifies all {count} held-out samples without an attack, but the search needs correctly"
            " classified samples: give more with --held-out"
        )
    return kept


def has_gradient(subject: Subject) -> bool:
    """Return whether the logits have a gradient with respect to the images."""
    some = subject.part(torch.arange(1, device=subject.batch.labels.device))
    leaf = some.batch.images.detach().requires_grad_()
    with torch.enable_grad():
        return _depends(some.classifier(leaf), leaf)


def hides_gradient(subject: Subject) -> bool:
    """Return whether the gradient "identity" exists and differs from "loop": the model rounds or detaches values."""
    some = subject.part(torch.arange(1, device=subject.batch.labels.device))
    leaf = some.batch.images.detach().requires_grad_()
    with torch.enable_grad(), StraightThrough() as mode:
        logits = some.classifier(leaf)
    return mode.changed and _depends(logits, leaf)


def _depends(logits: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Return whether torch recorded the computation of the logits from the images."""
    if not logits.requires_grad:
        return False
    return torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None


def first_samples(subjects: Sequence[Subject], count: int) -> list[Subject]:
    """Return `count` samples, from all datasets in turn: the first ones of each, then the second ones, and so on."""
    places = sorted((n, number) for number, each in enumerate(subjects) for n in range(len(each.batch.labels)))[:count]
    parts = []
    for number, subject in enumerate(subjects):
        index = torch.tensor([n for n, owner in places if owner == number], dtype=torch.int64)
        parts += [subject.part(index.to(subject.batch.labels.device))] if len(index) else []
    return parts


def one_stage(entry: StageEntry) -> Attack:
    """Return the attack with only this stage."""
    return attack_of(AttackFile(1, "autopsy", (entry,)))


def _round_sizes(count: int) -> list[int]:
    """Return the number of attacks in each round, such as 40, 13, 4."""
    sizes = [count]
    while sizes[-1] > _KEPT:
        sizes.append(max(2, sizes[-1] // _KEPT))
    return sizes


def _has_objective(subject: Subject) -> bool:
    own = subject.classifier
    return isinstance(own, DefendedClassifier) and own.defense.objective is not None


def is_random(subject: Subject) -> bool:
    """Return whether other random numbers change the logits."""
    some = subject.part(torch.arange(min(2, len(subject.batch.labels)), device=subject.batch.labels.device))
    own = some.classifier
    other = own.of_samples(derive(some.batch.keys, "autopsy")) if isinstance(own, DefendedClassifier) else own
    with torch.no_grad():
        return not torch.equal(own(some.batch.images), other(some.batch.images))
