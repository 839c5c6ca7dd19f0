"""Compare the verdicts of recomputed attacks with the stored verdicts of an entry.

A verdict says whether the model classifies a sample correctly without an attack and after the attack. The module counts
the verdicts that differ. It also decides whether rounding on other hardware can explain so many differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.entry import Counterexample

TOLERANCE = 0.005
"""Share of verdicts that may differ on other hardware, because hardware types round differently.

The limit is generous on purpose. Without a change of hardware, no verdict differs: on one CPU, records are bitwise
equal for all batch sizes, shard sizes and orders of samples.
"""
SIGNIFICANCE = 0.01
"""Significance level of the test that checks whether the number of differing verdicts exceeds `TOLERANCE`."""
PARTS = ("ranked", "others")
"""Names of the two parts of an entry. The part "ranked" has the verdicts that the rank depends on. The part "others"
has the verdicts of all other attacks and radii.
"""


def exceeds_tolerance(wrong: int, n: int) -> bool:
    """Return whether `wrong` differing verdicts among `n` verdicts are significantly more than the tolerance allows.

    The test is a one-sided exact binomial test of the share `TOLERANCE` at the significance level `SIGNIFICANCE`.
    """
    from scipy.stats import binomtest

    return bool(binomtest(wrong, n, TOLERANCE, alternative="greater").pvalue < SIGNIFICANCE)


def upper_bound(wrong: int, n: int) -> float:
    """Return an upper limit for the share of wrong verdicts if `wrong` of `n` randomly chosen verdicts are wrong.

    The limit holds with 95 % confidence. It is one-sided and exact for a binomial distribution (Clopper and Pearson
    1934).
    """
    from scipy.stats import binomtest

    return float(binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high)


@dataclass(frozen=True)
class Disagreement:
    """A stored verdict that differs from the recomputed verdict."""

    attack: str
    dataset: str
    eps: str
    sample_id: str
    stored: str
    """The field `broken_by` of the stored record."""
    found: str
    """The field `broken_by` of the recomputed record."""

    @property
    def is_favourable(self) -> bool:
        """True if the sample is robust in the stored record but misclassified in the recomputed record.

        Such samples make the stored accuracy too high.
        """
        return self.stored == ""


@dataclass(frozen=True)
class RecomputedSample:
    """A sample that was attacked again on this machine: its stored record and its new record."""

    evidence: CellRecords
    """All records of the run with the same attack, dataset and radius."""
    position: int
    """Index of the sample in `evidence`."""
    here: SampleResult

    @property
    def stored(self) -> SampleResult:
        """The sample's stored record."""
        return self.evidence.results[self.position]

    @property
    def is_wrong(self) -> bool:
        """True if the stored and the recomputed verdict differ."""
        return _verdict(self.stored) != _verdict(self.here)

    @property
    def is_broken(self) -> bool:
        """True if the model classifies the sample correctly, but misclassifies it after the recomputed attack."""
        return _verdict(self.here) == "broken"

    @property
    def disagreement(self) -> Disagreement:
        """The stored and the recomputed verdict."""
        score = self.evidence.score
        about = score.attack, score.dataset, score.eps, self.stored.sample_id
        return Disagreement(*about, self.stored.broken_by, self.here.broken_by)

    def counterexample(self, source: str) -> Counterexample:
        """Return the recomputed adversarial example as a counterexample.

        `source` is the value of the field `Counterexample.source`.
        """
        about = self.evidence.score.dataset, self.here.sample_id, self.evidence.threat.norm
        return Counterexample(*about, self.here.distance, self.here.adversarial_prediction, source)


@dataclass(frozen=True)
class RecomputedPart:
    """Numbers of recomputed verdicts and of differing verdicts in one part of an entry."""

    name: str
    """Name of the part, one of `PARTS`."""
    verdicts: int
    """Number of recomputed verdicts."""
    wrong: int
    too_high: int
    """Number of samples that are robust in the stored records but misclassified in the recomputed records."""
    bound: float
    """Upper limit of the share of wrong verdicts in the part, with 95 % confidence (exact binomial, Clopper and Pearson
    1934). If the whole part was recomputed, it is the exact share."""

    @property
    def exceeds_tolerance(self) -> bool:
        """True if significantly more verdicts differ than the tolerance for other hardware allows."""
        # Verdicts that make the accuracy too low count as wrong too, because they make a competing model look worse.
        return exceeds_tolerance(self.wrong, self.verdicts)


def summarize_part(name: str, samples: Sequence[RecomputedSample], *, is_full: bool) -> RecomputedPart:
    """Return the counts for the recomputed samples of a part. If `is_full` is true, the whole part was recomputed."""
    disagreements = [sample.disagreement for sample in samples if sample.is_wrong]
    wrong, too_high = len(disagreements), sum(each.is_favourable for each in disagreements)
    bound = wrong / len(samples) if is_full else upper_bound(wrong, len(samples))
    return RecomputedPart(name, len(samples), wrong, too_high, bound)


def missing_warnings(samples: Sequence[RecomputedSample]) -> tuple[str, ...]:
    """Return a sentence that lists the warnings that are missing in stored records but not in recomputed records.

    The result is a tuple with this sentence. It is empty if the tolerance allows so many records without the warnings.
    """
    same = [(sample.stored, sample.here) for sample in samples if not sample.is_wrong]
    missing = [set(here.warnings.split(",")) - set(stored.warnings.split(",")) - {""} for stored, here in same]
    count = sum(map(bool, missing))
    if not count or not exceeds_tolerance(count, len(samples)):
        return ()
    return (f"the records of {count} samples lack the warnings {', '.join(sorted(set().union(*missing)))}",)


def _verdict(result: SampleResult) -> str:
    return result.broken_by if result.broken_by in ("", CLEAN) else "broken"
