"""Compare models on the same samples under one attack: accuracies, ranks, and paired tests of every pair of models.

`compare` returns a `Comparison`. `comparison.tables` makes tables from it, and `comparison.plots` draws plots.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from robustbench_vlm.comparison.align import AlignedRecords, ModelRecords, align, record_keys, select_samples
from robustbench_vlm.comparison.statistics import (
    ALPHA,
    compare_means,
    discordant_counts,
    holm,
    mcnemar,
    rank_range,
)
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import CLEAN, Accuracy, Score
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.tracks import Track

MEASURES = ("clean", "robust")
"""Names of the two accuracies that are compared."""
ROBUST = "robust"
"""Name of the robust accuracy. In `ComparedModel.broken_by`, the same name is the key for the robust samples: the model
classifies them correctly, and no stage of the attack found an adversarial image for them.
"""


@dataclass(frozen=True)
class CurvePoint:
    """One point of a robustness curve: the robust accuracy at one radius, averaged over datasets."""

    eps: str
    """Text such as "8/255"."""
    radius: float
    """The radius as a number, for pixels in [0, 1]."""
    robust: Accuracy
    attacks: tuple[str, ...] = ()
    """On a leaderboard, the attacks with records of all datasets at this radius. A comparison has one attack only, and
    leaves this field empty."""


@dataclass(frozen=True)
class DatasetResult:
    """Accuracies of one model on one dataset."""

    clean: Accuracy
    robust: Accuracy
    warnings: tuple[str, ...]
    """Warnings of the run, each "code" or "code:N" for N samples. They are about all samples of the run, including
    samples that are not compared.
    """


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison."""

    name: str
    protocol: str
    """Name and version, such as "mini/1"."""
    clean: Accuracy
    """Clean accuracy, averaged over the datasets in `Comparison.in_mean`."""
    robust: Accuracy
    """Robust accuracy, averaged over the datasets in `Comparison.in_mean`."""
    clean_rank: str
    """Rank by clean accuracy, such as "1". Models that do not differ significantly share a range, such as "2-4"."""
    rank: str
    """Rank by robust accuracy, such as "1". Models that do not differ significantly share a range, such as "2-4".
    """
    datasets: Mapping[str, DatasetResult]
    """Accuracies by dataset name."""
    broken_by: Mapping[str, int]
    """Number of samples for each key. The key "clean" counts the samples that are misclassified without an attack. The
    name of an attack stage counts the samples for which this stage found the first adversarial image. The key "robust"
    counts the remaining samples."""
    curve: tuple[CurvePoint, ...]
    """Mean robust accuracy at each radius at which records of the attack exist, in ascending order of the radius."""


@dataclass(frozen=True)
class DatasetTest:
    """Exact McNemar test of two models on one dataset."""

    only_first: int
    """Number of samples that only the first model classifies correctly."""
    only_second: int
    """Number of samples that only the second model classifies correctly."""
    p: float
    """Two-sided p value."""
    p_holm: float
    """p value after Holm's correction. The correction is over all pairs of models and all datasets, separately for
    clean and for robust accuracy.
    """


@dataclass(frozen=True)
class ModelPair:
    """Tests of two models by clean or by robust accuracy."""

    measure: str
    """"clean" or "robust"."""
    first: str
    """Name of the first model."""
    second: str
    difference: float
    """Mean accuracy of the first model minus mean accuracy of the second model, in [-1, 1]."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    p: float
    """Two-sided p value."""
    p_holm: float
    """p value after Holm's correction. The correction is over all pairs of models, separately for clean and for robust
    accuracy."""
    datasets: Mapping[str, DatasetTest]
    """Tests by dataset name."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of models under one attack and one threat model, on the samples that all models have."""

    track: str
    attack: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    datasets: tuple[str, ...]
    in_mean: tuple[str, ...]
    """Datasets that are included in the means. Datasets on which models of the track were trained are not included."""
    samples: Mapping[str, int]
    """Number of samples of each dataset."""
    models: tuple[ComparedModel, ...]
    pairs: tuple[ModelPair, ...]
    notes: tuple[str, ...]
    """Sentences about differences between the models and about records that were left out."""

    def best(self, measure: str, dataset: str = "") -> tuple[str, ...]:
        """Return the names of the best models. A model belongs to the best if no other model is significantly better.

        The models are compared by their mean accuracies. If `dataset` is given, they are compared by their accuracies
        on it.
        """
        values = {
            model.name: getattr(model.datasets[dataset] if dataset else model, measure).value for model in self.models
        }
        beaten = {
            min(pair.first, pair.second, key=values.__getitem__)
            for pair in self.pairs
            if pair.measure == measure and (pair.datasets[dataset] if dataset else pair).p_holm <= ALPHA
        }
        return tuple(name for name in values if name not in beaten)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def compare(
    models: Sequence[ModelRecords], track: Track, *, attack: str = "autoattack", eps: Fraction | None = None
) -> Comparison:
    """Compare models under an attack at one radius.

    `eps` is the radius for pixels in [0, 1]. If it is None, the standard eps of the track is used. Raises UserError if
    a model does not have records of the attack at this radius, or if the models do not have a common sample.
    """
    threat = Threat(track.norm, track.standard_eps if eps is None else eps)
    aligned = align(models, attack, threat, track.datasets)
    in_mean = tuple(name for name in aligned.datasets if name not in track.training_datasets) or aligned.datasets
    names = [each.name for each in models]
    pairs = tuple(pair for measure in MEASURES for pair in _pairs(names, aligned, in_mean, measure))
    return Comparison(
        track=track.name,
        attack=attack,
        norm=threat.norm,
        eps=threat.eps_text,
        datasets=aligned.datasets,
        in_mean=in_mean,
        samples={name: each.score.n for name, each in aligned.models[0].items()},
        models=_compared_models(models, aligned, in_mean, pairs),
        pairs=pairs,
        notes=(*aligned.notes, *_seen_notes(in_mean, track), *(note for each in models for note in each.notes)),
    )


def _compared_models(
    models: Sequence[ModelRecords], aligned: AlignedRecords, in_mean: Sequence[str], pairs: Sequence[ModelPair]
) -> tuple[ComparedModel, ...]:
    means = [_means([evidence[name].score for name in in_mean]) for evidence in aligned.models]
    names = [model.name for model in models]
    ranks = {measure: _ranks(names, [mean[measure].value for mean in means], measure, pairs) for measure in MEASURES}
    return tuple(
        ComparedModel(
            name=model.name,
            protocol=next(iter(evidence.values())).protocol,
            clean=means[number]["clean"],
            robust=means[number]["robust"],
            clean_rank=ranks["clean"][number],
            rank=ranks["robust"][number],
            datasets={
                name: DatasetResult(each.score.clean_accuracy, each.score.robust_accuracy, each.score.warnings)
                for name, each in evidence.items()
            },
            broken_by=_broken_by(list(evidence.values())),
            curve=_curve(model, evidence, in_mean),
        )
        for number, (model, evidence) in enumerate(zip(models, aligned.models, strict=True))
    )


def _pairs(names: Sequence[str], aligned: AlignedRecords, in_mean: Sequence[str], measure: str) -> list[ModelPair]:
    """Test every pair of models by one measure, the clean or the robust accuracy.

    The p values of means and of datasets are adjusted separately.
    """
    import numpy

    verdicts = {
        name: numpy.array([_verdicts(each[name], measure) for each in aligned.models]) for name in aligned.datasets
    }
    first, second = numpy.triu_indices(len(names), k=1)
    counts = [discordant_counts(each, each) for each in verdicts.values()]
    only_first, only_second = (numpy.stack([each[side][first, second] for each in counts], axis=1) for side in (0, 1))
    p = mcnemar(only_first, only_second)
    p_holm = holm(p.ravel()).reshape(p.shape)
    averaged = [place for place, name in enumerate(verdicts) if name in in_mean]
    sizes = [each.shape[1] for name, each in verdicts.items() if name in in_mean]
    means = compare_means(only_first[:, averaged], only_second[:, averaged], sizes)
    counts_and_p = zip(*(each.tolist() for each in (only_first, only_second, p, p_holm)), strict=True)
    tests = [
        {name: DatasetTest(*each) for name, *each in zip(verdicts, *columns, strict=True)} for columns in counts_and_p
    ]
    columns = (means.difference, means.low, means.high, means.p, holm(means.p))
    rows = zip(*(each.tolist() for each in (first, second, *columns)), tests, strict=True)
    return [ModelPair(measure, names[one], names[other], *rest) for one, other, *rest in rows]


def _verdicts(evidence: CellRecords, measure: str) -> list[bool]:
    """Return for each sample whether the model classifies it correctly, after the attack or without an attack."""
    return [row.broken_by == "" if measure == ROBUST else row.broken_by != CLEAN for row in evidence.results]


def _ranks(names: Sequence[str], values: Sequence[float], measure: str, pairs: Sequence[ModelPair]) -> list[str]:
    place = {name: index for index, name in enumerate(names)}
    better, worse = Counter[int](), Counter[int]()
    for pair in pairs:
        if pair.measure == measure and pair.p_holm <= ALPHA:
            lower, higher = sorted((place[pair.first], place[pair.second]), key=values.__getitem__)
            better[lower] += 1
            worse[higher] += 1
    return [rank_range(better[index], worse[index], len(names)) for index in range(len(names))]


def _means(scores: Sequence[Score]) -> dict[str, Accuracy]:
    return {
        "clean": Accuracy.mean([score.clean_accuracy for score in scores]),
        "robust": Accuracy.mean([score.robust_accuracy for score in scores]),
    }


def _broken_by(evidence: Sequence[CellRecords]) -> dict[str, int]:
    """Count the samples that are misclassified without an attack, misclassified because of each stage, and robust.

    The result has the form of `ComparedModel.broken_by`.
    """
    counts = Counter(result.broken_by for each in evidence for result in each.results)
    stages = [stage["name"] for each in evidence for stage in each.identity["attack"]["stages"]]
    return {CLEAN: counts[CLEAN], **{stage: counts[stage] for stage in dict.fromkeys(stages)}, ROBUST: counts[""]}


def _curve(model: ModelRecords, aligned: Mapping[str, CellRecords], in_mean: Sequence[str]) -> tuple[CurvePoint, ...]:
    """Return the mean robust accuracy on the common samples at each radius.

    A radius is skipped if it does not have records of all common samples.
    """
    first = next(iter(aligned.values()))
    radii: dict[Fraction, dict[str, CellRecords]] = {}
    for each in model.evidence:
        name = each.score.dataset
        is_alike = (each.score.attack, each.protocol) == (first.score.attack, first.protocol)
        is_alike = is_alike and each.threat.norm == first.threat.norm and name in in_mean
        if is_alike and set(record_keys(aligned[name])) <= set(record_keys(each)):
            radii.setdefault(each.threat.eps, {})[name] = select_samples(each, record_keys(aligned[name]))
    return tuple(
        CurvePoint(
            Threat(first.threat.norm, eps).eps_text,
            float(eps),
            _means([found[name].score for name in in_mean])["robust"],
        )
        for eps, found in sorted(radii.items())
        if len(found) == len(in_mean)
    )


def _seen_notes(in_mean: Iterable[str], track: Track) -> list[str]:
    if not set(in_mean) & set(track.training_datasets):
        return []
    return [
        "the means are over datasets on which models of this track were trained, because there are no records of other"
        " datasets"
    ]
