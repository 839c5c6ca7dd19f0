"""Autopsy of a defense: search for the smallest attack that breaks it, and attack other samples once with this attack.

The search uses held-out samples only, so the reported robust accuracy is not selected on its own samples.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from robustbench_vlm.analysis.attack_classifier import batch_in_memory
from robustbench_vlm.analysis.autopsy_search import (
    Round,
    Search,
    Subject,
    correct_samples,
    has_gradient,
    hides_gradient,
    is_random,
    measure,
    search,
)
from robustbench_vlm.analysis.autopsy_space import not_tried, tried
from robustbench_vlm.attacks.attack_file import AttackFile, StageEntry, attack_of
from robustbench_vlm.attacks.base import Batch, GradientWay
from robustbench_vlm.attacks.eot import SeededClassifier
from robustbench_vlm.attacks.other_sample_start import with_other_images
from robustbench_vlm.attacks.surrogate_gradients import ClassifierWithSurrogate
from robustbench_vlm.core.classifier_interface import Classifier, ClassifierLike, as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.core.threat import Threat, exact_eps, norm_named
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import precise_classifier
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time.base import TestTimeDefense, shortened
from robustbench_vlm.test_time.defended_model import DefendedClassifier

BUDGET = 200_000
"""Default number of passes of the search."""


@dataclass(frozen=True)
class Autopsy:
    """The result of an autopsy."""

    model: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    protocol: str
    """The protocol of the reported samples, or "" for images in memory."""
    datasets: tuple[str, ...]
    held_out: int
    """The number of correctly classified samples that the search used. None of them is a reported sample."""
    clean: Accuracy
    """Mean clean accuracy over the datasets, of the reported samples."""
    robust: Accuracy
    """Mean robust accuracy over the datasets under `attack`, of the reported samples."""
    attack: AttackFile
    """The attack that the search chose."""
    rounds: tuple[Round, ...]
    search_passes: int
    """Forward and backward passes of the search."""
    attack_passes: int
    """Forward and backward passes of the attack on the reported samples."""
    tried: str
    """The attacks that were compared."""
    not_tried: str
    """Attacks that were not compared."""
    seconds: float
    """Wall time of the search and the attack in seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def autopsy(
    request: Request, *, budget: int = BUDGET, held_out: int = 8, on_progress: OnProgress = ignore_progress
) -> Autopsy:
    """Search for the smallest attack that breaks the model of a request, and attack the reported samples with it.

    The reported samples are those of `run` with the same request. The `held_out` samples of each dataset that follow
    them in the order of the protocol are for the search. Records are neither read nor written.

    Raises UserError if the request is invalid, has several models or radii, or asks for all samples. Also raises
    UserError if the datasets have no other samples for the search.
    """
    count = _check(request, budget, held_out)
    plan = resolve(replace(request, attacks=("pgd-10",), samples=count + held_out), on_progress)
    if len({cell.threat for cell in plan.cells}) > 1:
        radii = ", ".join(dict.fromkeys(cell.threat.eps_text for cell in plan.cells))
        raise UserError(f"an autopsy needs one radius, got {radii}: give one with --eps")
    resources = plan.request.resources
    with arithmetic():
        others = [_subject(cell, count, len(cell), resources.device) for cell in plan.cells if len(cell) > count]
        if not others:
            raise UserError(
                f"the datasets have no samples other than the {count} that are reported, but the search needs some:"
                " give a smaller number with --samples"
            )
        reported = [_subject(cell, 0, min(count, len(cell)), resources.device) for cell in plan.cells]
        about = plan.cells[0].model_name, plan.cells[0].threat, _label(request, plan)
        return _examined(about, others, reported, _ways(others[0]), budget, resources.batch_size, on_progress)


def autopsy_classifier(
    classifier: ClassifierLike,
    images: Any,
    labels: Any,
    *,
    eps: float | str | Fraction,
    surrogate: ClassifierLike | None = None,
    held_out: int = 0,
    budget: int = BUDGET,
    norm: str = "Linf",
    name: str = "model",
    batch_size: int = 64,
    seed: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> Autopsy:
    """Search for the smallest attack that breaks a classifier in memory.

    Args:
        classifier: A torch module or a function from images, float32 [B, 3, H, W] in [0, 1], to logits, float [B, C].
        images: float [N, 3, H, W] in [0, 1].
        labels: int [N], the index of the correct logit of each image.
        eps: Radius for pixels in [0, 1], such as "4/255".
        surrogate: A classifier with useful gradients, such as the network without its defense.
        held_out: The number of images at the end that the search uses. The others are reported. 0 uses half of them.
        budget: The number of passes of the search.
        norm: "Linf" or "L2".
        name: The name of the model, which is part of the name of the attack.
        batch_size: Number of images in each forward pass.
        seed: Seed of the random numbers.
        on_progress: Called with the number of finished rounds.

    Raises:
        UserError: An argument cannot be used, or no held-out image is classified correctly.
    """
    threat = Threat(norm_named(norm), exact_eps(eps))
    batch = batch_in_memory(classifier, images, labels, threat, seed)
    n = len(batch.labels)
    searched = held_out or n // 2
    if not 0 < searched < n:
        raise UserError(f"held_out must be from 1 to {n - 1} for {n} images, got {held_out}: leave it out to use half")
    own = with_fixed_draws(classifier, batch)
    attacked = own if surrogate is None else ClassifierWithSurrogate(own, as_classifier(surrogate))
    whole = Subject("images", attacked, batch)
    places = torch.arange(n, device=batch.labels.device)
    with arithmetic():
        ways = tuple(_ways_in_memory(whole, has_surrogate=surrogate is not None))
        others, reported = (_own_starts(whole.part(part)) for part in (places[n - searched :], places[: n - searched]))
        return _examined((name, threat, ""), [others], [reported], ways, budget, batch_size, on_progress)


def with_fixed_draws(classifier: ClassifierLike, batch: Batch) -> Classifier:
    """Return a random classifier with one known draw of its random numbers for each sample of the batch.

    The random numbers must come from torch's global generator. Other classifiers are returned unchanged. `attack` on
    the returned classifier repeats the result of `autopsy_classifier`.
    """
    own = as_classifier(classifier)
    return SeededClassifier(own, batch.keys) if is_random(Subject("images", own, batch)) else own


def _ways_in_memory(subject: Subject, *, has_surrogate: bool) -> Iterator[GradientWay]:
    if has_surrogate:
        yield from ("transfer", "straight-through")
    if hides_gradient(subject):
        yield "identity"
    if has_gradient(subject):
        yield "loop"
    yield "estimated"


def _examined(
    about: tuple[str, Threat, str],
    others: list[Subject],
    reported: list[Subject],
    ways: tuple[GradientWay, ...],
    budget: int,
    batch_size: int,
    on_progress: OnProgress,
) -> Autopsy:
    """Choose an attack with the subjects `others`, attack the reported ones once with it, and return the result.

    `about` has the name of the model, the threat, and the protocol of the reported samples.
    """
    begun = time.monotonic()
    model, threat, protocol = about
    found, correct = _searched(others, ways, budget, batch_size, on_progress)
    content = _attack_file(model, found)
    clean, robust, passes = measure(reported, attack_of(content), batch_size)
    return Autopsy(
        model=model,
        norm=threat.norm,
        eps=threat.eps_text,
        protocol=protocol,
        datasets=tuple(each.dataset for each in reported),
        held_out=correct,
        clean=clean,
        robust=robust,
        attack=content,
        rounds=found.rounds,
        search_passes=found.passes,
        attack_passes=passes,
        tried=tried(found.space),
        not_tried=not_tried(found.space, found.left_out),
        seconds=time.monotonic() - begun,
    )


def _searched(
    subjects: list[Subject], ways: tuple[GradientWay, ...], budget: int, batch_size: int, on_progress: OnProgress
) -> tuple[Search, int]:
    """Return the result of the search, and the number of correctly classified samples that it used."""

    def on_round(done: int, total: int) -> None:
        on_progress(Progress(done, total, label=f"round {done + 1}"))

    kept = correct_samples(subjects, batch_size)
    found = search(kept, ways, budget=budget, batch_size=batch_size, on_round=on_round)
    return found, sum(len(each.batch.labels) for each in kept)


def _attack_file(model: str, found: Search) -> AttackFile:
    name = re.sub(r"[^a-z0-9.-]+", "-", f"autopsy-{model.lower()}")[:60]
    return AttackFile(1, name, (found.chosen,), f"the smallest attack that vlmbench autopsy found for {model}")


def _check(request: Request, budget: int, held_out: int) -> int:
    """Return the number of reported samples of each dataset. Raise UserError for a request that has no autopsy."""
    if len(request.models) != 1:
        raise UserError(f"an autopsy is for one model, got {len(request.models)}: run the command once for each model")
    for name, value in (("--budget", budget), ("--held-out", held_out)):
        if value < 1:
            raise UserError(f"{name} must be a positive integer, got {value}: leave it out to use the default")
    count = request.samples or PROTOCOLS.load(request.protocol_name).samples
    if not isinstance(count, int):
        raise UserError(
            "an autopsy needs samples that are not reported, but all samples were asked for: give a number with"
            " --samples, such as 100"
        )
    return count


def _label(request: Request, plan: Plan) -> str:
    """Return the label of the protocol that `run` has for the reported samples."""
    protocol = PROTOCOLS.load(request.protocol_name)
    return str(protocol.with_samples(request.samples).label if isinstance(request.samples, int) else protocol.label)


def _subject(cell: Cell, start: int, stop: int, device: str) -> Subject:
    batch, _ = load_batch(cell, start, stop, device=device)
    protocol = cell.protocol
    about = cell.model, cell.track, cell.dataset.prompts, device
    classifier = precise_classifier(*about, protocol.verdict_precision, protocol.logit_precision)
    return _own_starts(Subject(cell.dataset.name, classifier.of_samples(batch.keys), batch))


def _own_starts(subject: Subject) -> Subject:
    """Return the subject with starting points among its own images, as `run` has for the reported samples."""
    batch = subject.batch
    return replace(subject, batch=with_other_images(batch, batch.images, batch.labels))


def _ways(subject: Subject) -> tuple[GradientWay, ...]:
    """Return the ways to differentiate that a model supports."""
    if not isinstance(subject.classifier, DefendedClassifier):
        return ("loop", "estimated")
    return tuple(_ways_of_defense(subject.classifier.defense))


def _ways_of_defense(defense: TestTimeDefense) -> Iterator[GradientWay]:
    yield from ("transfer", "straight-through")
    yield from dict.fromkeys(mode.gradient for mode in defense.gradient_modes)
    if shortened(defense.settings) != defense.settings:
        yield "truncated"
    yield "estimated"


def entry_text(entry: StageEntry) -> str:
    """Return an attack of a search as text, such as "apgd through constant, loss margin, 25 steps"."""
    values = dict(entry.parameters)
    steps = values.pop("steps")
    rest = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())
    draws = f", {entry.draws} draws" if entry.draws > 1 else ""
    return f"{entry.algorithm}, gradient {entry.gradient}{draws}, {rest + ', ' if rest else ''}{steps} steps"
