"""Lowest known verdicts: the samples that no recorded attack and no counterexample breaks, and mean accuracies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, Accuracy, Verdict
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.entry import Counterexample, broken_samples


@dataclass(frozen=True)
class KnownVerdicts:
    """Verdicts for the samples of one dataset at one radius, after all recorded attacks and counterexamples.

    All fields have one item for each sample, in the order of the records.
    """

    ids: tuple[str, ...]
    clean: tuple[bool, ...]
    """True for samples that are classified correctly without an attack."""
    robust: tuple[bool, ...]
    """True for samples that are classified correctly, also after all recorded attacks and counterexamples."""
    unfinished: tuple[bool, ...]
    """True for samples that nothing breaks and that an estimated run at this radius did not attack in full. For these
    samples, `robust` is False."""


def worst_known(
    evidence: Iterable[CellRecords], counterexamples: Sequence[Counterexample], threat: Threat
) -> dict[str, KnownVerdicts]:
    """Return one model's verdicts. The keys are dataset names.

    A sample is not robust if it is misclassified after any recorded attack or in any counterexample. The radius may be
    smaller than the radius of `threat`, but the norm must be the same. Only datasets that were attacked under exactly
    `threat` are included.
    """
    within = [each for each in evidence if each.threat.norm == threat.norm and each.threat.eps <= threat.eps]
    found: dict[str, KnownVerdicts] = {}
    for name in dict.fromkeys(each.score.dataset for each in within if each.threat == threat):
        own = [each for each in within if each.score.dataset == name]
        # In an entry, the records of one dataset have the same samples in the same order under all attacks.
        rows = list(zip(*(each.results for each in own), strict=True))
        broken = broken_samples(counterexamples, name, threat)
        lost = [any(r.verdict is Verdict.BROKEN for r in row) or row[0].sample_id in broken for row in rows]
        here = [place for place, each in enumerate(own) if each.threat == threat]
        waiting = [any(row[place].verdict is Verdict.UNFINISHED for place in here) for row in rows]
        found[name] = KnownVerdicts(
            ids=tuple(row[0].sample_id for row in rows),
            clean=tuple(row[0].broken_by != CLEAN for row in rows),
            robust=tuple(not each and not later for each, later in zip(lost, waiting, strict=True)),
            unfinished=tuple(later and not each for each, later in zip(lost, waiting, strict=True)),
        )
    return found


def accuracy(verdicts: Sequence[bool]) -> Accuracy:
    """Return the accuracy with its 95 % Wilson interval. A verdict is True for a correct prediction."""
    return Accuracy.of_counts(sum(verdicts), len(verdicts))


def mean_accuracy(strata: Sequence[Sequence[bool]]) -> Accuracy:
    """Return the mean accuracy over datasets, with its 95 % interval.

    `strata` has the verdicts of each dataset. The mean is unweighted.
    """
    return Accuracy.mean([accuracy(each) for each in strata])


def mean_without(verdicts: Mapping[str, Sequence[bool]], seen: Sequence[str]) -> Accuracy:
    """Return the mean accuracy over the datasets that are not in `seen`, the datasets for training.

    If all datasets are in `seen`, return the mean over all of them.
    """
    kept = [each for name, each in verdicts.items() if name not in seen]
    return mean_accuracy(kept or list(verdicts.values()))
