"""The Python interface: load models, attacks and datasets by name, evaluate, compare, and read leaderboards.

The package exports these functions, as in `from robustbench_vlm import evaluate`.
"""

import dataclasses
import inspect
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_vlm.analysis.attack_classifier import attack_classifier as attack
from robustbench_vlm.analysis.contracts import check_model
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.comparison.compare import Comparison
from robustbench_vlm.comparison.compare import compare as compare_sources
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import user_path
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat, exact_eps, norm_named
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.datasets.published.local_copy import prepare_dataset
from robustbench_vlm.engine.arguments import (
    Count,
    Names,
    check_count,
    checked_half_width,
    checked_samples,
    command_of,
    names_of,
    radii_of,
)
from robustbench_vlm.engine.cell import choose_samples
from robustbench_vlm.engine.model_cache import AnyModel, loaded_model
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.engine.run import run
from robustbench_vlm.engine.store import safe_name
from robustbench_vlm.engine.warnings import explain
from robustbench_vlm.leaderboard.board import Board
from robustbench_vlm.leaderboard.entry import board_folder
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.sources import read_sources
from robustbench_vlm.models import card_names
from robustbench_vlm.models.device import choose_device
from robustbench_vlm.models.in_memory import InMemoryModel, registered, renamed, zero_shot
from robustbench_vlm.models.reference import ACCEPTED
from robustbench_vlm.models.zero_shot_arguments import ZERO_SHOT_FORMS
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import DEFAULT_TRACK, TRACKS

__all__ = [
    "LoadedDataset",
    "attack",
    "benchmark",
    "check_model",
    "compare",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_leaderboard",
    "load_model",
    "zero_shot",
]

_OF_BENCHMARK = ("models", "datasets", "images", "eps", "norm", "samples", "name", "data", "device")
"""Arguments of `evaluate` that `benchmark` has under RobustBench's names."""
_OF_ROBUSTBENCH = {
    "version": 'leave it out, and give attacks="autoattack" for the standard version of AutoAttack',
    "preprocessing": "leave it out, because a model resizes and normalises the images itself",
    "corruptions": "leave it out, and use RobustBench for common corruptions of images",
    "corruptions_data_dir": "leave it out, and use RobustBench for common corruptions of images",
    "log_path": "leave it out, and give out= for the folder of the records",
    "aa_state_path": "leave it out, because evaluate continues from the records in the folder out",
}
"""Arguments of RobustBench's `benchmark` that cannot be used, with advice."""

Models = str | Path | InMemoryModel | Iterable[str | Path | InMemoryModel]
"""One or several models. Each is a reference or a model in memory."""


@dataclass(frozen=True)
class LoadedDataset:
    """The samples of a dataset in memory. A protocol selects the samples and their order."""

    name: str
    images: Tensor
    """The images, float32 [N, 3, H, W] in [0, 1]."""
    labels: Tensor
    """The class index of each sample, int64 [N]. It is an index in `classes`."""
    ids: tuple[str, ...]
    """The ids of the N samples, as in the records of a run."""
    classes: tuple[str, ...]
    """The names of the C classes."""
    prompts: tuple[Prompt, ...]
    """The prompts of the C classes, for `model.classifier`."""
    keys: Tensor
    """The seed (key) of the random numbers of each sample, int64 [N]. It is the argument of `classifier.of_samples`."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, eps: float | str | Fraction, norm: str = "Linf") -> Batch:
        """Return the samples as a batch for `attack_samples`.

        `eps` is a radius on the pixel scale [0, 1], such as "4/255". Raises UserError for an invalid eps or norm.
        """
        threat = Threat(norm_named(norm), exact_eps(eps))
        return Batch(self.images, self.labels, self.keys, threat, torch.full_like(self.labels, len(self.classes)))


def load_model(model: str | Path, track: str = "mini", *, device: str = "") -> AnyModel:
    """Load a model by its name on a track, a card file, open_clip:ARCH/TAG, hf:ORG/NAME, or DEFENSE+MODEL.

    `model.classifier(prompts)` returns a zero-shot classifier for C classes. `prompts` has one entry per class. The
    classifier is a torch module that maps images, float32 [B, 3, H, W] in [0, 1], to logits, float32 [B, C]. It is
    differentiable, and it resizes and normalises the images.

    A test-time defense may draw random numbers for each sample. `classifier.of_samples(keys)` returns a classifier for
    B samples with these keys, int64 [B]. `LoadedDataset.keys` has the keys of a dataset. Models without a test-time
    defense support this method too.

    Args:
        model: The model, in one of the forms above.
        track: The track in which the name is searched.
        device: "cpu" or "cuda". "" uses a GPU if there is one.

    Raises:
        UserError: The name is unknown, the digest of the weights is wrong, or the weights were never released.
    """
    if not isinstance(model, str | os.PathLike):
        raise UserError(
            f"load_model takes the name of a model or another reference, got {type(model).__name__}: give {ACCEPTED};"
            f" for a model in memory, write {ZERO_SHOT_FORMS}"
        )
    return loaded_model(os.fspath(model), track, choose_device(device))


def load_dataset(
    name: str,
    track: str = "mini",
    *,
    samples: Count = None,
    protocol: str = "",
    data: str | Path | None = None,
    input_size: int | None = None,
) -> LoadedDataset:
    """Load the samples of a dataset that a protocol evaluates.

    Args:
        name: The name of the dataset.
        track: The track whose default protocol is used.
        samples: The number of samples, or "all". None uses the protocol's number. The samples are the first samples of
            the dataset's standard order.
        protocol: The name of a protocol. "" uses the default protocol of the track.
        data: The folder of the published datasets. None uses the environment variable VLMBENCH_DATA.
        input_size: The height and width of the model's input in pixels. Protocols such as "trusted-native" resize the
            images to it. None keeps the size of the protocol.

    Raises:
        UserError: A name is unknown, the dataset is missing, or an image cannot be read.
    """
    chosen: Protocol = PROTOCOLS.load(protocol or TRACKS.load(track).protocols[0])
    if samples is not None:
        chosen = chosen.with_samples(None if (count := checked_samples(samples)) == "all" else count)
    dataset = prepare_dataset(
        chosen.adapt_dataset(DATASETS.load(name), input_size), chosen.samples, None if data is None else Path(data)
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
    models: Models,
    attacks: Names = "autoattack",
    *,
    track: str = "",
    eps: float | str | Fraction | Sequence[float | str | Fraction] | None = None,
    norm: str = "",
    datasets: Names | None = None,
    samples: Count = None,
    protocol: str = "",
    images: str | Path | None = None,
    prompt: str = "",
    data: str | Path | None = None,
    name: str = "",
    half_width: float = 0.0,
    draws: int = 0,
    eot: int = 0,
    out: str | Path = "runs",
    workers: int = 0,
    batch_size: int = 0,
    device: str = "",
    on_progress: OnProgress = ignore_progress,
) -> RunResult:
    """Measure the clean and robust accuracy of each model under each attack at each eps.

    The command `vlmbench run` does the same. Samples with records in the folder `out` are not attacked again. The
    function `engine.run.run` has more options.

    Args:
        models: One or several models. Each is a name or reference that `load_model` accepts, or a model that
            `zero_shot` returned. Models from `zero_shot` run in this process.
        attacks: The names of one or several attacks.
        track: The track. It defines the defaults of `datasets`, `eps`, `norm` and `protocol`. "" is the track "mini".
        eps: One or several radii for pixels in [0, 1], such as "4/255" or 4/255. None uses the radii of the protocol,
            or the track's standard radius.
        norm: "Linf" or "L2". "" uses the norm of the track.
        datasets: One or several datasets. None uses the datasets of the track.
        samples: The number of samples per dataset, or "all". None uses the protocol's number.
        protocol: The name of a protocol. "" uses the default protocol of the track.
        images: A folder with one sub-folder of images per class. It replaces the datasets. Without `track` and
            `protocol`, the protocol "images" is used.
        prompt: The prompt template for the classes of `images`. "" uses "a photo of a {}.".
        data: The folder of the published datasets. None uses the environment variable VLMBENCH_DATA.
        name: Another name for the model, if `models` is one model from `zero_shot`.
        half_width: Largest allowed half-width of the interval of the mean robust accuracy, such as 0.01. Most samples
            are then attacked only with the cheap stages. If it is 0, all samples are attacked in full.
        draws: The number of fresh draws with which a random model classifies each image, such as 100. If it is 0, the
            random numbers of each sample are fixed.
        eot: The number of draws of which the attacks take the mean gradient. 0 uses 20, as AutoAttack's version "rand".
        out: The folder for the records.
        workers: The number of processes. 0 uses one process per CPU core or GPU.
        batch_size: The number of samples that are attacked together. 0 uses a number that fits into the memory.
        device: "cpu" or "cuda". "" uses a GPU if there is one.
        on_progress: A function that is called with the number of finished samples.

    Raises:
        UserError: An argument cannot be used. The message lists the accepted forms.
    """
    for option, count in (("workers", workers), ("batch_size", batch_size)):
        check_count(option, count)
    given = _models(models, name)
    in_memory = [model for model in given if isinstance(model, InMemoryModel)]
    if in_memory and workers > 1:
        raise UserError(f"models in memory run in this process, got workers={workers}: leave workers out")
    with registered(in_memory, named=card_names(track or DEFAULT_TRACK)) as references:
        found = iter(references)
        request = Request(
            models=tuple(next(found) if isinstance(model, InMemoryModel) else model for model in given),
            attacks=names_of("attacks", attacks),
            track=track,
            datasets=() if datasets is None else names_of("datasets", datasets),
            eps=radii_of(eps),
            norm=norm,
            protocol=protocol,
            samples=checked_samples(samples),
            images=None if images is None else Path(images),
            prompt=prompt,
            data=None if data is None else Path(data),
            half_width=checked_half_width(half_width),
            draws=draws,
            eot=eot,
            out=Path(out),
            resources=Resources(device=device, workers=1 if in_memory else workers, batch_size=batch_size),
        )
        return run(dataclasses.replace(request, command=command_of(request)), on_progress=on_progress)


def benchmark(
    model: str | Path | InMemoryModel,
    dataset: str | Path,
    eps: float | str | Fraction | None = None,
    *,
    n_examples: Count = None,
    threat_model: str = "Linf",
    model_name: str = "",
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> tuple[float, float]:
    """Return the clean and the robust accuracy in [0, 1] of one model on one dataset, like RobustBench's `benchmark`.

    This function calls `evaluate`, but has the argument names of RobustBench. Warnings about the accuracies are issued
    as Python warnings. The records are written to disk. Call `evaluate` to get confidence intervals too.

    Args:
        model: A model in a form that `evaluate` accepts.
        dataset: The name of a dataset, or a folder with one sub-folder of images per class.
        eps: The radius for pixels in [0, 1], such as 8/255 or "8/255". It must be given.
        n_examples: The number of samples, or "all". None uses the protocol's number.
        threat_model: "Linf" or "L2".
        model_name: Another name for a model from `zero_shot`.
        data_dir: The folder of the published datasets. None uses the environment variable VLMBENCH_DATA.
        device: "cpu" or "cuda". None uses a GPU if there is one.
        options: Further arguments of `evaluate`, such as `attacks`, `track`, `prompt`, `batch_size` and `out`.
            RobustBench's `to_disk` changes nothing, because the records are always written. Its other arguments, such
            as `preprocessing` and `log_path`, are refused unless they are None.

    Raises:
        UserError: An argument cannot be used. The message lists the accepted forms.
    """
    if not isinstance(model, str | Path | InMemoryModel):
        _models(model, "")
        raise UserError(f"benchmark takes one model, got a {type(model).__name__}: use evaluate for several models")
    if threat_model not in ("Linf", "L2"):
        raise UserError(
            f"threat_model must be Linf or L2, got {threat_model!r}: use RobustBench for common corruptions of images"
        )
    if eps is None:
        raise UserError("benchmark needs a radius, got eps=None: give one, such as eps=8/255")
    names_of("datasets", dataset)
    options = _options(options)
    if model_name and not isinstance(model, InMemoryModel):
        raise UserError(f"model_name={model_name!r} renames a model from zero_shot, got {str(model)!r}: leave it out")
    holders = [name for name in TRACKS.table if dataset in TRACKS.load(name).datasets]
    settings: dict[str, Any] = {"track": holders[0] if holders else "", **options}
    is_folder = not holders and user_path(dataset).is_dir()
    settings["images" if is_folder else "datasets"] = dataset
    result = evaluate(
        model,
        eps=eps,
        norm=threat_model,
        samples=n_examples,
        name=model_name,
        data=data_dir,
        device="" if device is None else torch.device(device).type,
        **settings,
    )
    score = result.tables[0].scores[0]
    for code in score.warnings:
        warnings.warn(f"{score.dataset}: {code}: {explain(code).meaning}: {explain(code).advice}", stacklevel=2)
    return score.clean_accuracy.value, score.robust_accuracy.value


def compare(
    models: Names,
    attack: str = "autoattack",
    *,
    track: str = "mini",
    eps: float | str | Fraction | None = None,
    runs: str | Path | None = None,
) -> Comparison:
    """Compare models on their common samples, with a statistical test for each pair.

    The command `vlmbench compare` does the same. Only existing records are compared, and no model is run.

    Args:
        models: The models. Each is a name, an entry file, or a run folder.
        attack: The name of the attack whose records are compared.
        track: The track of the records.
        eps: The radius for pixels in [0, 1]. None uses the track's standard radius.
        runs: The folder that `evaluate` had as `out`. Names are searched first in this folder and after that on the
            leaderboard. If it is None, only the leaderboard is searched, so the result does not depend on the current
            folder.

    Raises:
        UserError: A model lacks records, or the models do not have a common sample.
    """
    folder = None if runs is None else user_path(runs)
    references = [_run_or_name(name, folder, track) for name in names_of("models", models)]
    sources = read_sources(references, track, attack=attack, runs=folder)
    return compare_sources(sources, TRACKS.load(track), attack=attack, eps=None if eps is None else exact_eps(eps))


def load_leaderboard(track: str = "mini", folder: str | Path | None = None) -> Board:
    """Return the leaderboard of a track, from the entries in `folder`. None uses the entries in the package.

    Raises UserError if the track is unknown or an entry is invalid.
    """
    return make_board(track, board_folder(track) if folder is None else user_path(folder))


def _run_or_name(name: str, runs: Path | None, track: str) -> str:
    """Return the run folder of a model in `runs`. If this folder does not exist, return the name of the model."""
    folder = None if runs is None else runs / safe_name(track) / safe_name(name)
    return str(folder) if folder is not None and folder.is_dir() else name


def _models(given: Any, name: str) -> tuple[str | InMemoryModel, ...]:
    """Return models as a tuple of references and models in memory. Raises UserError for other types."""
    is_one = isinstance(given, str | Path | InMemoryModel | nn.Module) or not isinstance(given, Iterable)
    models = [str(each) if isinstance(each, Path) else each for each in ((given,) if is_one else given)]
    for each in models:
        if not isinstance(each, str | InMemoryModel):
            raise UserError(
                f"models must be names, other references, or models made by zero_shot, got {type(each).__name__}: write"
                f" {ZERO_SHOT_FORMS}; or a reference, which is {ACCEPTED}; for a classifier of images, use"
                " attack(classifier, images, labels, eps=...)"
            )
    if not name:
        return tuple(models)
    if len(models) != 1 or not isinstance(models[0], InMemoryModel):
        got = f"{len(models)} models" if len(models) != 1 else f"{str(models[0])!r}, which has a name"
        raise UserError(f"name={name!r} renames one model made by zero_shot, got {got}: leave name out")
    return (renamed(models[0], name),)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `benchmark` for `evaluate`. Raises UserError for an option that cannot be used."""
    options = dict(given)
    if options.pop("to_disk", None) is False:
        warnings.warn("to_disk=False is ignored: the records are always written to the folder out", stacklevel=3)
    for name in [name for name in _OF_ROBUSTBENCH if options.get(name, 0) is None]:
        del options[name]
    known = [name for name in inspect.signature(evaluate).parameters if name not in _OF_BENCHMARK]
    for name in options:
        if name in _OF_ROBUSTBENCH:
            raise UserError(f"benchmark cannot use {name}={options[name]!r} of RobustBench: {_OF_ROBUSTBENCH[name]}")
        if name not in known:
            raise UserError(
                f"benchmark has no argument {name!r}: give the arguments of RobustBench or {', '.join(known)}"
            )
    return options
