"""The Python interface: load models, attacks and datasets by name, evaluate, compare, and read leaderboards.

The package exports these functions, as in `from robustbench_vlm import evaluate`.
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

__all__ = ["LoadedDataset", "compare", "evaluate", "load_attack", "load_dataset", "load_leaderboard", "load_model"]

_OWN = {
    "models": " For your own model save its state dict with torch.save, convert it to a model card with"
    " `vlmbench convert FILE --base NAME --track TRACK`, and give the path of the card",
    "attacks": " For your own attack register it by an entry point, see CONTRIBUTING.md, and give its name",
}

Names = str | Iterable[str]
"""One name, or several."""
Count = int | Literal["all"] | None


@dataclass(frozen=True)
class LoadedDataset:
    """The samples of a dataset that a protocol chooses, in its order, in memory."""

    name: str
    images: Tensor
    """(N, 3, H, W), float32 in [0, 1]."""
    labels: Tensor
    """(N,), int64: indices into `classes`."""
    ids: tuple[str, ...]
    """Sample ids, as in the records."""
    classes: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """The prompts of each class, the argument of `model.classifier`."""
    keys: Tensor
    """(N,), int64: keys of the samples' random numbers, the argument of `classifier.of_samples`."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, eps: str | Fraction, norm: str = "Linf") -> Batch:
        """Return the samples as the batch of `attack_samples`; raise UserError for an invalid eps or norm."""
        threat = Threat(norm, _radius(eps))
        return Batch(self.images, self.labels, self.keys, threat, torch.full_like(self.labels, len(self.classes)))


def load_model(model: str, track: str = "mini", *, device: str = "") -> AnyModel:
    """Load a model by its name on a track, card file, open_clip:ARCH/TAG, or DEFENSE+MODEL.

    `model.classifier(prompts)` is the zero-shot classifier of the classes that the prompts describe: a torch module
    from images (B, 3, H, W) in [0, 1] to float32 logits (B, C), differentiable in the images, with resize and
    normalisation inside. A test-time defense may draw random numbers per sample: `classifier.of_samples(keys)` is the
    function from the images of these samples to logits, for every kind of model. The model is on a GPU if there is
    one, unless `device` is "cpu". Raises UserError for unknown names, wrong digests, and models that were not released.
    """
    return loaded_model(model, track, choose_device(device))


def load_dataset(
    name: str, track: str = "mini", *, samples: Count = None, protocol: str = "", data: str | Path | None = None
) -> LoadedDataset:
    """Load the samples of a dataset that a protocol chooses; by default the first protocol of the track.

    `samples` replaces the protocol's number of samples, or is "all"; a smaller number gives the first of the same
    samples. `data` is the folder of the published datasets, by default VLMBENCH_DATA. Raises UserError for unknown
    names, missing datasets, and unreadable images.
    """
    chosen: Protocol = PROTOCOLS.load(protocol or TRACKS.load(track).protocols[0])
    if samples is not None:
        chosen = chosen.with_samples(None if (count := _count(samples)) == "all" else count)
    dataset = prepare_dataset(
        chosen.adapt_dataset(DATASETS.load(name)), chosen.samples, None if data is None else Path(data)
    )
    found = choose_samples(dataset, chosen, skip_unreadable=False)
    return LoadedDataset(
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

    Datasets, eps and protocol default to those of the track. Records that are already in `out` are not computed again.
    `workers` is the number of processes, 0 for one per core or GPU. `engine.run.run` takes a `Request`, which has the
    rarer options too. Raises UserError for arguments that cannot be used, such as a model that is not given by name.
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
    """Compare models on their common samples, with a test for each pair, as `vlmbench compare` does.

    A model is a name, an entry file, or the folder of a run. A name is searched in `runs` (the `out` of `evaluate`) if
    it is given, then on the leaderboard. Only existing records are used. Raises UserError if a model has no records,
    and if the models have no common sample.
    """
    own = {} if runs is None else {path.name: str(path) for path in sorted((Path(runs) / track).glob("*"))}
    references = [own.get(name, name) for name in _names("models", models)]
    sources = read_sources(references, track, attack=attack)
    return compare_sources(sources, TRACKS.load(track), attack=attack, eps=None if eps is None else _radius(eps))


def load_leaderboard(track: str = "mini", folder: str | Path | None = None) -> Board:
    """Return the leaderboard of a track: the one of the package, or the one of the entries in a folder.

    Raises UserError for an unknown track, and for an invalid entry.
    """
    return make_board(track, board_folder(track) if folder is None else Path(folder))


def _names(what: str, given: Any) -> tuple[str, ...]:
    """Return one or several names as a tuple; raise UserError for anything that is not a name."""
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise UserError(
            f"{what} must be names, got {type(wrong[0]).__name__}: each worker process loads and checks them by name."
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
        raise UserError(
            f"eps must be a text or a Fraction, got the {type(eps).__name__} {eps!r}: write it exactly, as '4/255'"
        )
    return parse_eps(eps) if isinstance(eps, str) else eps


def _command(request: Request) -> str:
    """Return the equivalent command line, for the manifest."""
    options = [("--model", name) for name in request.models]
    options += [("--attack", name) for name in request.attacks]
    options += [("--dataset", name) for name in request.datasets]
    options += [("--eps", str(eps)) for eps in request.eps]
    single = (("--track", request.track), ("--protocol", request.protocol), ("--samples", request.samples))
    options += [(name, str(value)) for name, value in single if value]
    return shlex.join(["vlmbench", "run", *(word for pair in options for word in pair)])


def _count(samples: Count) -> Count:
    if samples not in (None, "all") and (not isinstance(samples, int) or samples < 1):
        raise UserError(
            f"samples must be a positive integer or 'all', got {samples!r}: leave it out for the protocol's number"
        )
    return samples
