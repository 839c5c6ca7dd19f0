"""What a comparison of models is: their numbers on the same samples, and which of them tests tell apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.comparison.statistics import ALPHA
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Accuracy

MEASURES = ("clean", "robust")
ROBUST = "robust"
"""`broken_by` of what nothing broke, as counts and tables name it."""


@dataclass(frozen=True)
class Point:
    """The worst number known at one radius, as the mean over the zero-shot datasets."""

    eps: str
    radius: float
    """Pixel scale."""
    robust: Accuracy


@dataclass(frozen=True)
class Result:
    """One model on one dataset."""

    clean: Accuracy
    robust: Accuracy
    warnings: tuple[str, ...]
    """Of the gates, "code" or "code:N"; of all the samples that its run had."""


@dataclass(frozen=True)
class Compared:
    """One model of a comparison."""

    name: str
    protocol: str
    clean: Accuracy
    """Mean over the datasets of the mean; so is `robust`."""
    robust: Accuracy
    clean_place: str
    """"1", or "2-4" where tests leave these places open."""
    place: str
    """By robust accuracy."""
    datasets: Mapping[str, Result]
    broken_by: Mapping[str, int]
    """Samples by what broke them, in order: "clean" (wrong without an attack), the stages, and "robust"."""
    curve: tuple[Point, ...]
    """Every radius on record for this attack, smallest first."""


@dataclass(frozen=True)
class PairOnSet:
    """Exact McNemar test of two models on one dataset."""

    only_first: int
    only_second: int
    p: float
    p_holm: float
    """Adjusted over all pairs and datasets of the measure."""


@dataclass(frozen=True)
class Pair:
    """Two models by one measure, "clean" or "robust"."""

    measure: str
    first: str
    second: str
    difference: float
    """Of the means, first minus second, with its 95 % interval."""
    low: float
    high: float
    p: float
    p_holm: float
    """Adjusted over all pairs of the measure."""
    datasets: Mapping[str, PairOnSet]


@dataclass(frozen=True)
class Comparison:
    """Models compared on the samples that all of them have, under one attack within one radius."""

    track: str
    attack: str
    norm: str
    eps: str
    datasets: tuple[str, ...]
    in_mean: tuple[str, ...]
    """The datasets that the means are over: those that models of the track were trained on are not among them."""
    samples: Mapping[str, int]
    """By dataset."""
    models: tuple[Compared, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    """Sentences: what differs between the models, what was left out."""

    def best(self, measure: str, dataset: str = "") -> tuple[str, ...]:
        """Return the models that no better one is told apart from, by the mean or on one dataset."""
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
