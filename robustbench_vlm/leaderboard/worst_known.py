"""The worst number known: which samples of an entry no attack on record, and no counterexample, has broken."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, Accuracy
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.leaderboard.entry import Counterexample


@dataclass(frozen=True)
class Verdicts:
    """What is known of the samples of one dataset at one radius, in the order of the records."""

    ids: tuple[str, ...]
    clean: tuple[bool, ...]
    """Right without an attack."""
    robust: tuple[bool, ...]
    """Right, and broken by nothing that is known."""


def worst_known(
    evidence: Iterable[Evidence], counterexamples: Sequence[Counterexample], threat: Threat
) -> dict[str, Verdicts]:
    """Return the verdicts of one model at a threat, by dataset, of those that were attacked at exactly this radius.

    What broke a sample within a smaller radius of the norm breaks it within this one.
    """
    within = [each for each in evidence if each.threat.norm == threat.norm and each.threat.eps <= threat.eps]
    found: dict[str, Verdicts] = {}
    for name in dict.fromkeys(each.score.dataset for each in within if each.threat == threat):
        own = [each for each in within if each.score.dataset == name]
        # Records of one entry and dataset are of the same samples, in the same order: its protocol's.
        rows = list(zip(*(each.results for each in own), strict=True))
        broken = {
            each.sample_id
            for each in counterexamples
            if (each.dataset, each.norm) == (name, threat.norm) and each.distance <= float(threat.eps) + 1e-7
        }
        found[name] = Verdicts(
            ids=tuple(row[0].sample_id for row in rows),
            clean=tuple(row[0].broken_by != CLEAN for row in rows),
            robust=tuple(all(r.broken_by == "" for r in row) and row[0].sample_id not in broken for row in rows),
        )
    return found


def accuracy(verdicts: Sequence[bool]) -> Accuracy:
    """Return the share of true verdicts with Wilson's interval."""
    return Accuracy.of_counts(sum(verdicts), len(verdicts))


def mean_accuracy(strata: Sequence[Sequence[bool]]) -> Accuracy:
    """Return the unweighted mean over datasets of the shares of true verdicts, with `mean_interval`."""
    return Accuracy.mean([accuracy(each) for each in strata])


def mean_without(verdicts: Mapping[str, Sequence[bool]], seen: Sequence[str]) -> Accuracy:
    """Return the mean over the datasets that are not in `seen`; over all where nothing else is left."""
    kept = [each for name, each in verdicts.items() if name not in seen]
    return mean_accuracy(kept or list(verdicts.values()))
