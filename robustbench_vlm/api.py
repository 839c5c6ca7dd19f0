"""The commands from Python: models, attacks and datasets by name, evaluation, comparison and leaderboard.

`robustbench_vlm` itself has these functions: `from robustbench_vlm import evaluate` is all that a program needs.
"""

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.comparison.compare import Comparison
from robustbench_vlm.comparison.compare import compare as compare_sources
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.datasets.published.local_copy import prepare_dataset
from robustbench_vlm.engine.cell import choose_samples
from robustbench_vlm.engine.model_cache import AnyModel, loaded_model
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.engine.run import run
from robustbench_vlm.leaderboard.board import Board
from robustbench_vlm.leaderboard.entry import board_folder
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.sources import read_sources
from robustbench_vlm.models.device import choose_device
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import TRACKS

__all__ = ["Pictures", "compare", "evaluate", "load_attack", "load_dataset", "load_leaderboard", "load_model"]

_OWN = {
    "models": " For a model of your own save its state dict by torch.save, make a card of it by `vlmbench convert FILE"
    " --base NAME --track TRACK`, and give the path of the card",
    "attacks": " For an attack of your own register it by an entry point, see CONTRIBUTING.md, and give its name",
}

Names = str | Iterable[str]
"""One name, or several."""
Count = int | Literal["all"] | None


@dataclass(frozen=True)
class Pictures:
    """The samples of a dataset that a protocol measures on, in its order, all in memory."""

    name: str
    images: Tensor
    """(N, 3, H, W), float32 in [0, 1]."""
    labels: Tensor
    """(N,), int64: class numbers."""
    ids: tuple[str, ...]
    """By which records name the samples."""
    classes: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """What is said of each class: what `model.classifier` takes."""
    keys: Tensor
    """(N,), int64: the samples' random streams, which `classifier.of_samples` takes."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, eps: str | Fraction, norm: str = "Linf") -> Batch:
        """Return the samples as `attack_samples` takes them; raise UserError for an eps or a norm that is none."""
        threat = Threat(norm, _radius(eps))
        return Batch(self.images, self.labels, self.keys, threat, torch.full_like(self.labels, len(self.classes)))


def load_model(model: str, track: str = "mini", *, device: str = "") -> AnyModel:
    """Load a model by its name on a track, card file, open_clip:ARCH/TAG, or DEFENSE+MODEL.

    `model.classifier(prompts)` is the zero-shot classifier of the classes that the prompts describe, a torch module
    from images (B, 3, H, W) in [0, 1] to float32 logits (B, C), differentiable in the images; resize and normalisation
    are inside. With a test-time defense it draws random numbers for each sample: `classifier.of_samples(images.keys)`
    is a function of those samples' images, for every model. On a GPU where there is one, unless `device` says "cpu".
    Raises UserError for unknown names, wrong digests, and models that nobody has released.
    """
    return loaded_model(model, track, choose_device(device))


def load_dataset(
    name: str, track: str = "mini", *, samples: Count = None, protocol: str = "", data: str | Path | None = None
) -> Pictures:
    """Load the samples of a dataset that a protocol (the track's first one if none is named) measures on.

    `samples` takes so many instead of the protocol's number, or "all"; the first ones are the same whatever it is.
    `data` is the folder of the published datasets, else VLMBENCH_DATA. Raises UserError for unknown names, for data
    sets that are not there, and for unreadable images.
    """
    chosen: Protocol = PROTOCOLS.load(protocol or TRACKS.load(track).protocols[0])
    if samples is not None:
        chosen = chosen.with_samples(None if (count := _count(samples)) == "all" else count)
    dataset = prepare_dataset(
        chosen.adapt_dataset(DATASETS.load(name)), chosen.samples, None if data is None else Path(data)
    )
    found = choose_samples(dataset, chosen, skip_unreadable=False)
    return Pictures(
        name=dataset.name,
        images=dataset.open().read(found.indices).to(torch.float32) / 255,
        labels=torch.tensor(found.labels, dtype=torch.int64),
        ids=found.ids,
        classes=dataset.classes,
        prompts=dataset.prompts,
        keys=sample_keys(chosen.seed, dataset.name, found.ids),
    )


def evaluate(
    models: Names,
    attacks: Names = "autoattack",
    *,
    track: str = "mini",
    eps: str | Fraction | Sequence[str | Fraction] | None = None,
    datasets: Names | None = None,
    samples: Count = None,
    protocol: str = "",
    out: str | Path = "runs",
    workers: int = 0,
    device: str = "",
    on_progress: OnProgress = ignore_progress,
) -> RunResult:
    """Measure clean and robust accuracy of every model under every attack at every eps, as `vlmbench run` does.

    What is not said is the track's: its datasets, standard eps and first protocol. What is on disk below `out` already
    is not computed again. `workers` are processes, 0 one a core or GPU. `engine.run.run` takes a `Request`, which has
    the rarer options too. Raises UserError for what cannot be used, such as a model that is no name.
    """
    request = Request(
        models=_names("models", models),
        attacks=_names("attacks", attacks),
        track=track,
        datasets=() if datasets is None else _names("datasets", datasets),
        eps=_radii(eps),
        protocol=protocol,
        samples=_count(samples),
        out=Path(out),
        resources=Resources(device=device, workers=workers),
    )
    return run(dataclasses.replace(request, command=_command(request)), on_progress=on_progress)


def compare(
    models: Names,
    attack: str = "autoattack",
    *,
    track: str = "mini",
    eps: str | Fraction | None = None,
    runs: str | Path | None = None,
) -> Comparison:
    """Compare models on the samples that all of them have, each pair by tests, as `vlmbench compare` does.

    A model is a name, looked for below `runs`, where `evaluate` wrote, if that is given, then on the leaderboard; or an
    entry file, or the folder of a run.
    Nothing is computed that is not on record. Raises UserError where there is no such record, and no common sample.
    """
    own = {} if runs is None else {path.name: str(path) for path in sorted((Path(runs) / track).glob("*"))}
    references = [own.get(name, name) for name in _names("models", models)]
    sources = read_sources(references, track, attack=attack)
    return compare_sources(sources, TRACKS.load(track), attack=attack, eps=None if eps is None else _radius(eps))


def load_leaderboard(track: str = "mini", folder: str | Path | None = None) -> Board:
    """Return the leaderboard of a track: that which came with the package, or that of the entries in a folder.

    Raises UserError for an unknown track, and for an invalid entry.
    """
    return make_board(track, board_folder(track) if folder is None else Path(folder))


def _names(what: str, given: Any) -> tuple[str, ...]:
    """Return names that are given as one or several; raise UserError for anything that is no name."""
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise UserError(
            f"{what} must be names, and {type(wrong[0]).__name__} is none: workers load by name what they then check."
            + _OWN.get(what, "")
        )
    return names


def _radii(eps: str | Fraction | Sequence[str | Fraction] | None) -> tuple[Fraction, ...]:
    if eps is None:
        return ()
    radii = (eps,) if isinstance(eps, str | Fraction) or not isinstance(eps, Sequence) else tuple(eps)
    return tuple(_radius(each) for each in radii)


def _radius(eps: Any) -> Fraction:
    if not isinstance(eps, str | Fraction):
        raise UserError(f"eps {eps!r} is a {type(eps).__name__}: write it exactly, as the text '4/255'")
    return parse_eps(eps) if isinstance(eps, str) else eps


def _command(request: Request) -> str:
    """Return the command line that asks for the same, for the manifest."""
    options = [("--model", name) for name in request.models]
    options += [("--attack", name) for name in request.attacks]
    options += [("--dataset", name) for name in request.datasets]
    options += [("--eps", str(eps)) for eps in request.eps]
    single = (("--track", request.track), ("--protocol", request.protocol), ("--samples", request.samples))
    options += [(name, str(value)) for name, value in single if value]
    return shlex.join(["vlmbench", "run", *(word for pair in options for word in pair)])


def _count(samples: Count) -> Count:
    if samples not in (None, "all") and (not isinstance(samples, int) or samples < 1):
        raise UserError(f"samples {samples!r} is no number of samples: give 1 or more, or 'all'")
    return samples
