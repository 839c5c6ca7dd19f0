"""Transfer: the adversarial images of each model tried on every other (Papernot et al., arXiv:1605.07277).

A white-box attack that breaks less than images made for another model did not find what is there: the sign of masked
gradients (arXiv:1802.00420, section 3.1).
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
from robustbench_vlm.engine.warnings import BLACK_BOX_SHARE
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Standing:
    """How a model stands on one dataset, or in the mean over several."""

    clean: Accuracy
    robust: Accuracy
    """Under the attack on itself: what `vlmbench run` gives."""
    under: Mapping[str, Accuracy]
    """By source: on the images that the attack on that model ended at; of itself this is `robust`."""
    worst: Accuracy
    """Share of samples that it gets right in the images of all sources, its own included."""


@dataclass(frozen=True)
class Target:
    """A model on which the images of all are tried."""

    model: str
    mean: Standing
    """Unweighted over the zero-shot datasets."""
    datasets: Mapping[str, Standing]
    missed: int
    """Samples of these datasets that the attack on it left robust and that images of other sources break."""


@dataclass(frozen=True)
class Transfer:
    """What was found: every model as source and as target, in the order of the request."""

    track: str
    protocol: str
    attack: str
    norm: str
    eps: str
    """As people write it, "8/255"."""
    datasets: tuple[str, ...]
    """The zero-shot ones, over which the means are."""
    n: int
    """Samples of these datasets together."""
    targets: tuple[Target, ...]
    warnings: tuple[str, ...]
    """Sentences."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        document: dict[str, Any] = plain(self)
        return document


def transfer(request: Request, save: Path | None = None, *, on_progress: OnProgress = ignore_progress) -> Transfer:
    """Attack each of the request's models and try the images on all; nothing of a run on disk is read.

    With `save`, a folder, every model's images are written to it as <model>.safetensors, see `exchange`. Raises
    UserError as `resolve` does, for fewer than two models, and where no dataset is a zero-shot one.
    """
    begun = time.monotonic()
    _check(request, save)
    ENGINES.load(request.resources.engine).prepare(request.resources)
    plan = resolve(request)
    names = dict.fromkeys(cell.dataset.name for cell in plan.cells)
    unseen = tuple(name for name in names if name not in plan.track.seen)
    clock = _Clock(plan, on_progress)
    attacked = attack_cells(plan, clock.attacked)
    if save is not None:
        for model, images in adversarial_images(plan, attacked).items():
            write_images(images, save / f"{safe_name(model)}.safetensors")
    right = _right(plan, attacked, clock)
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
    """Return the images of each model of a plan, of all its datasets together, as they are handed in."""
    found = {}
    for model in _models(plan):
        own = [(cell, each) for cell, each in zip(plan.cells, attacked, strict=True) if cell.model_name == model]
        samples = tuple((cell.dataset.name, sample) for cell, _ in own for sample in cell.samples.ids)
        found[model] = AdversarialImages(plan.track.name, samples, torch.cat([each.images for _, each in own]))
    return found


class _Clock:
    """Tells how far a transfer is: samples attacked, then images tried; the time left is weighed by their passes."""

    def __init__(self, plan: Plan, on_progress: OnProgress) -> None:
        self.on_progress, self.others = on_progress, len(_models(plan)) - 1
        cell = plan.cells[0]
        walks = sum(sum(stage.calls(stage.parameters, len(cell.dataset.classes))) for stage in cell.attack.stages)
        self.weight = 3 * walks
        self.samples, self.begun, self.done, self.passes = plan.samples, time.monotonic(), 0, 0
        seconds = 0.0 if on_progress is ignore_progress else estimate_cost(plan).seconds_most
        on_progress(Progress(0, self.samples * (1 + self.others), seconds))

    def attacked(self, count: int, cell: Cell) -> None:
        """So many samples more have been attacked."""
        self._tell(count, count * self.weight, f"attack on {cell.model_name}")

    def tried(self, count: int, cell: Cell) -> None:
        """So many images of another model more have been tried."""
        self._tell(count, count, f"images tried on {cell.model_name}")

    def _tell(self, count: int, passes: int, label: str) -> None:
        self.done, self.passes = self.done + count, self.passes + passes
        left = self.samples * (self.weight + self.others) - self.passes
        seconds = (time.monotonic() - self.begun) / self.passes * left
        self.on_progress(Progress(self.done, self.samples * (1 + self.others), seconds, label, self.passes))


_Right = Mapping[tuple[str, str, str], Tensor]
"""By dataset, target and source: which images of the source the target gets right, (N,), bool."""


def _models(plan: Plan) -> list[str]:
    return list(dict.fromkeys(cell.model_name for cell in plan.cells))


def _check(request: Request, save: Path | None) -> None:
    if len(set(request.models)) < 2:
        raise UserError("images are tried on other models: name two or more, as in --model clip --model agft")
    track: Track = TRACKS.load(request.track)
    if request.datasets and set(request.datasets) <= set(track.seen):
        raise UserError(
            f"models of the track {track.name!r} were trained on {' and '.join(request.datasets)}, so there is no mean"
            " to give: add another --dataset"
        )
    if save is not None and save.exists() and not save.is_dir():
        raise UserError(f"--save {save} is a file: give a folder, in which each model's images get a file")


def _right(plan: Plan, attacked: Sequence[Attacked], clock: _Clock) -> _Right:
    right: dict[tuple[str, str, str], Tensor] = {}
    for target, own in zip(plan.cells, attacked, strict=True):
        labels = torch.tensor(target.samples.labels)
        keys = sample_keys(target.protocol.seed, target.dataset.name, target.samples.ids)
        for source, other in zip(plan.cells, attacked, strict=True):
            if source.dataset.name != target.dataset.name:
                continue
            about = target.dataset.name, target.model_name, source.model_name
            if source is target:
                # The record's verdict: to classify again in another batch may round otherwise.
                right[about] = torch.tensor([result.broken_by == "" for result in own.results])
                continue
            logits = verdict_logits(target, keys, other.images, device=plan.request.resources.device)
            right[about] = logits.argmax(dim=1) == labels
            clock.tried(len(target), target)
    return right


def _target(model: str, plan: Plan, right: _Right, attacked: Sequence[Attacked], unseen: Sequence[str]) -> Target:
    sources = _models(plan)
    standings, missed = {}, 0
    for cell, own in zip(plan.cells, attacked, strict=True):
        if cell.model_name != model:
            continue
        under = {source: right[cell.dataset.name, model, source] for source in sources}
        survives = torch.stack(list(under.values())).all(dim=0)
        standings[cell.dataset.name] = Standing(
            clean=_share(torch.tensor([result.broken_by != CLEAN for result in own.results])),
            robust=_share(under[model]),
            under={source: _share(values) for source, values in under.items()},
            worst=_share(survives),
        )
        missed += int((under[model] & ~survives).sum()) if cell.dataset.name in unseen else 0
    return Target(model, _mean([standings[name] for name in unseen]), standings, missed)


def _share(right: Tensor) -> Accuracy:
    return Accuracy.of_counts(int(right.sum()), len(right))


def _mean(standings: Sequence[Standing]) -> Standing:
    return Standing(
        clean=Accuracy.mean([each.clean for each in standings]),
        robust=Accuracy.mean([each.robust for each in standings]),
        under={source: Accuracy.mean([each.under[source] for each in standings]) for source in standings[0].under},
        worst=Accuracy.mean([each.worst for each in standings]),
    )


def masked_gradients(target: Target, attack: str) -> Iterator[str]:
    """Say where images of other models do better than the attack on a model itself; one sample may be chance."""
    mean = target.mean
    beaten = [source for source, share in mean.under.items() if share.value < mean.robust.value]
    advice = "believe no white-box number of it before `vlmbench run --attack autoattack` and gradients that see it"
    if beaten:
        yield (
            f"{target.model}: images made for {' and '.join(beaten)} break more of it than {attack} on itself does,"
            f" the sign of masked gradients: {advice}"
        )
    elif target.missed >= 2 and target.missed > BLACK_BOX_SHARE * mean.clean.n:
        yield (
            f"{target.model}: images made for other models break {target.missed} of {mean.clean.n} samples that"
            f" {attack} on itself left, which may be masked gradients or a weak attack: {advice}"
        )
