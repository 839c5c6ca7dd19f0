"""Transfer attacks: evaluate every model on the adversarial images of every model (Papernot et al., arXiv:1605.07277).

Usually, a model misclassifies more images that were made for itself (a white-box attack) than images that were made for
other models. If it is the other way round, its gradients may be masked (Athalye et al., arXiv:1802.00420, section 3.1).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.analysis.adversarial_images import AdversarialImages, attack_cells, write_images
from robustbench_vlm.analysis.verdict import verdict_logits
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.records import CLEAN, Accuracy
from robustbench_vlm.engine.backends import ENGINES
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.shard import Attacked
from robustbench_vlm.engine.store import safe_name
from robustbench_vlm.tracks import TRACKS, Track

MISSED_SHARE = 0.02
"""Share of the samples above which the images of other models are a sign of masked gradients. Less may be chance."""


@dataclass(frozen=True)
class TransferAccuracies:
    """Accuracies of one model on one dataset, or their means over several datasets."""

    clean: Accuracy
    robust: Accuracy
    """Accuracy under the attack on the model itself. `vlmbench run` gives the same value."""
    under: Mapping[str, Accuracy]
    """Accuracy on the adversarial images of each source model. If the source is the model itself, the value is
    `robust`.
    """
    worst: Accuracy
    """Share of robust samples under the adversarial images of all source models, in [0, 1]. A sample is robust if all
    these images are classified correctly. The source models include the model itself.
    """


@dataclass(frozen=True)
class TransferTarget:
    """The accuracies of one model on the adversarial images of all models."""

    model: str
    mean: TransferAccuracies
    """Unweighted mean over the zero-shot datasets."""
    datasets: Mapping[str, TransferAccuracies]
    """Accuracies by dataset name."""
    missed: int
    """Number of zero-shot samples with a successful transfer attack: the model misclassifies an image that was made for
    another model, but not the image that was made for the model itself.
    """


@dataclass(frozen=True)
class Transfer:
    """Result of a transfer attack. Every model is a source and a target, in the order of the request."""

    track: str
    protocol: str
    attack: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    datasets: tuple[str, ...]
    """Names of the zero-shot datasets. The means are over these datasets."""
    n: int
    """Total number of samples in the zero-shot datasets."""
    targets: tuple[TransferTarget, ...]
    warnings: tuple[str, ...]
    """Sentences about possibly masked gradients."""
    seconds: float
    """Wall time in seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def transfer(request: Request, save: Path | None = None, *, on_progress: OnProgress = ignore_progress) -> Transfer:
    """Attack each model of a request and evaluate all models on the adversarial images. Records on disk are not used.

    If the folder `save` is given, the images of every model are written to <save>/<model>.safetensors, in the format of
    `analysis.adversarial_images`. Raises UserError if the request is invalid. The request must have at least two
    models and a zero-shot dataset.
    """
    begun = time.monotonic()
    _check(request, save)
    ENGINES.load(request.resources.engine).prepare(request.resources)
    plan = resolve(request)
    names = dict.fromkeys(cell.dataset.name for cell in plan.cells)
    unseen = tuple(name for name in names if name not in plan.track.training_datasets)
    reporter = _ProgressReporter(plan, on_progress)
    attacked = attack_cells(plan, reporter.attacked)
    if save is not None:
        for model, images in adversarial_images(plan, attacked).items():
            write_images(images, save / f"{safe_name(model)}.safetensors")
    right = _right(plan, attacked, reporter)
    targets = tuple(_target(model, plan, right, attacked, unseen) for model in _models(plan))
    first = plan.cells[0]
    return Transfer(
        track=plan.track.name,
        protocol=plan.protocol.label,
        attack=first.attack.name,
        norm=first.threat.norm,
        eps=first.threat.eps_text,
        datasets=unseen,
        n=targets[0].mean.clean.n,
        targets=targets,
        warnings=tuple(sentence for target in targets for sentence in masked_gradients(target, first.attack.name)),
        seconds=time.monotonic() - begun,
    )


def adversarial_images(plan: Plan, attacked: Sequence[Attacked]) -> dict[str, AdversarialImages]:
    """Return the adversarial images of each model. The keys are model names.

    The images of all datasets of the plan are joined. `attacked` has one item for each cell (one model and dataset) of
    the plan. If the images are written to a file, `vlmbench dispute` can read it.
    """
    found = {}
    for model in _models(plan):
        own = [(cell, each) for cell, each in zip(plan.cells, attacked, strict=True) if cell.model_name == model]
        samples = tuple((cell.dataset.name, sample) for cell, _ in own for sample in cell.samples.ids)
        found[model] = AdversarialImages(plan.track.name, samples, torch.cat([each.images for _, each in own]))
    return found


class _ProgressReporter:
    """Reports the progress of a transfer: first the attacks, then the classifications of images by other models.

    The remaining time is estimated from the number of forward and backward passes of attacks and classifications.
    """

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.on_progress, self.others = on_progress, len(_models(plan)) - 1
        cell = plan.cells[0]
        calls = sum(sum(stage.calls(stage.parameters, len(cell.dataset.classes))) for stage in cell.attack.stages)
        self.weight = 3 * calls
        self.samples, self.begun, self.done, self.passes = plan.samples, time.monotonic(), 0, 0
        seconds = 0.0 if on_progress is ignore_progress else estimate_cost(plan).seconds_most
        on_progress(Progress(0, self.samples * (1 + self.others), seconds))

    def attacked(self, count: int, cell: Cell) -> None:
        """Report that `count` more samples have been attacked."""
        self._report(count, count * self.weight, f"attack on {cell.model_name}")

    def classified(self, count: int, cell: Cell) -> None:
        """Report that `count` more images of another model have been classified."""
        self._report(count, count, f"classification by {cell.model_name}")

    def _report(self, count: int, passes: int, label: str) -> None:
        self.done, self.passes = self.done + count, self.passes + passes
        left = self.samples * (self.weight + self.others) - self.passes
        seconds = (time.monotonic() - self.begun) / self.passes * left
        self.on_progress(Progress(self.done, self.samples * (1 + self.others), seconds, label, self.passes))


_Right = Mapping[tuple[str, str, str], Tensor]
"""Verdicts with the keys (dataset, target model, source model). Each value is bool [N]: True if the target model
classifies the adversarial image of the source model correctly."""


def _models(plan: Plan) -> list[str]:
    return list(dict.fromkeys(cell.model_name for cell in plan.cells))


def _check(request: Request, save: Path | None) -> None:
    if len(set(request.models)) < 2:
        raise UserError(
            "a transfer needs two or more models, but only one was given: give another one, such as"
            " --model clip --model agft"
        )
    track: Track = TRACKS.load(request.track_name)
    if request.datasets and set(request.datasets) <= set(track.training_datasets):
        raise UserError(
            f"a transfer needs a zero-shot dataset, but models of the track {track.name!r} were trained on"
            f" {' and '.join(request.datasets)}: give another dataset with --dataset"
        )
    if save is not None and save.exists() and not save.is_dir():
        raise UserError(
            f"--save {save} is a file, but a folder is expected: give a folder for the image files of all models"
        )


def _right(plan: Plan, attacked: Sequence[Attacked], reporter: _ProgressReporter) -> _Right:
    """Classify the adversarial images of every source model with every target model."""
    right: dict[tuple[str, str, str], Tensor] = {}
    for target, own in zip(plan.cells, attacked, strict=True):
        labels = torch.tensor(target.samples.labels)
        keys = sample_keys(target.protocol.seed, target.dataset.name, target.samples.ids)
        for source, other in zip(plan.cells, attacked, strict=True):
            if source.dataset.name != target.dataset.name:
                continue
            about = target.dataset.name, target.model_name, source.model_name
            if source is target:
                # If the source and the target are the same model, use the verdict in the record. Another forward pass
                # may give a different verdict, because float32 rounding depends on the batch size.
                right[about] = torch.tensor([result.broken_by == "" for result in own.results])
                continue
            logits = verdict_logits(target, keys, other.images, device=plan.request.resources.device)
            right[about] = logits.argmax(dim=1) == labels
            reporter.classified(len(target), target)
    return right


def _target(
    model: str, plan: Plan, right: _Right, attacked: Sequence[Attacked], unseen: Sequence[str]
) -> TransferTarget:
    sources = _models(plan)
    found, missed = {}, 0
    for cell, own in zip(plan.cells, attacked, strict=True):
        if cell.model_name != model:
            continue
        under = {source: right[cell.dataset.name, model, source] for source in sources}
        survives = torch.stack(list(under.values())).all(dim=0)
        found[cell.dataset.name] = TransferAccuracies(
            clean=_share(torch.tensor([result.broken_by != CLEAN for result in own.results])),
            robust=_share(under[model]),
            under={source: _share(values) for source, values in under.items()},
            worst=_share(survives),
        )
        missed += int((under[model] & ~survives).sum()) if cell.dataset.name in unseen else 0
    return TransferTarget(model, _mean([found[name] for name in unseen]), found, missed)


def _share(right: Tensor) -> Accuracy:
    return Accuracy.of_counts(int(right.sum()), len(right))


def _mean(accuracies: Sequence[TransferAccuracies]) -> TransferAccuracies:
    return TransferAccuracies(
        clean=Accuracy.mean([each.clean for each in accuracies]),
        robust=Accuracy.mean([each.robust for each in accuracies]),
        under={source: Accuracy.mean([each.under[source] for each in accuracies]) for source in accuracies[0].under},
        worst=Accuracy.mean([each.worst for each in accuracies]),
    )


def masked_gradients(target: TransferTarget, attack: str) -> Iterator[str]:
    """Yield a warning if images that were made for other models succeed where the attack on the model itself fails.

    If this is true for only one sample, there is no warning, because it may be chance.
    """
    mean = target.mean
    stronger = [source for source, share in mean.under.items() if share.value < mean.robust.value]
    advice = (
        "do not trust the white-box robust accuracy of this model yet: evaluate the model with `vlmbench run"
        " --attack autoattack`, and with gradients that account for its defense"
    )
    if stronger:
        yield (
            f"{target.model}: adversarial images of {' and '.join(stronger)} break more samples than {attack} on"
            f" the model itself. This is a sign of masked gradients: {advice}"
        )
    elif target.missed >= 2 and target.missed > MISSED_SHARE * mean.clean.n:
        yield (
            f"{target.model}: adversarial images of other models break {target.missed} of {mean.clean.n} samples"
            f" that {attack} on the model itself does not break. This is a sign of masked gradients or of a weak"
            f" attack: {advice}"
        )
