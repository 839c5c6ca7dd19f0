"""Tolerance for verdicts that differ between machines, and counts of recomputed verdicts that differ."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.entry import Counterexample

TOLERANCE = 0.005
"""Share of verdicts that may differ on other hardware, because other hardware rounds differently.

This convention is generous: on one CPU, other shard sizes, sample orders and batch sizes change no bit of a record.
"""
SIGNIFICANCE = 0.01
"""Significance level of the test that more verdicts differ than `TOLERANCE` allows."""
PARTS = ("ranked", "others")
"""The two parts of an entry: the verdicts that the rank depends on, and those of other attacks and radii."""


def exceeds_tolerance(wrong: int, n: int) -> bool:
    """Return whether `wrong` of `n` verdicts are significantly more than the tolerance allows.

    This is a one-sided exact binomial test against a share of `TOLERANCE` at the level `SIGNIFICANCE`.
    """
    from scipy.stats import binomtest

    return bool(binomtest(wrong, n, TOLERANCE, alternative="greater").pvalue < SIGNIFICANCE)


def upper_bound(wrong: int, n: int) -> float:
    """Return the upper limit of a share, with 95 % confidence, if `wrong` of `n` drawn verdicts are wrong.

    The limit is one-sided and exact for a binomial distribution (Clopper and Pearson 1934).
    """
    from scipy.stats import binomtest

    return float(binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high)


@dataclass(frozen=True)
class Disagreement:
    """A stored verdict that differs from the recomputed one."""

    attack: str
    dataset: str
    eps: str
    sample_id: str
    stored: str
    """`broken_by` of the stored record."""
    found: str
    """`broken_by` of the recomputed record."""

    @property
    def is_favourable(self) -> bool:
        """Whether the stored record says robust and the recomputed attack succeeds.

        Then the stored number is too high.
        """
        return self.stored == ""


@dataclass(frozen=True)
class RecomputedSample:
    """A stored record, and the result of attacking its sample again on this machine."""

    evidence: CellRecords
    """The records of the sample's cell."""
    position: int
    """Row of the sample in these records."""
    here: SampleResult

    @property
    def stored(self) -> SampleResult:
        """The sample's stored record."""
        return self.evidence.results[self.position]

    @property
    def is_wrong(self) -> bool:
        """Whether the stored and the recomputed verdict differ."""
        return _verdict(self.stored) != _verdict(self.here)

    @property
    def is_broken(self) -> bool:
        """Whether the recomputed attack succeeds."""
        return _verdict(self.here) == "broken"

    @property
    def disagreement(self) -> Disagreement:
        """The stored and the recomputed verdict."""
        score = self.evidence.score
        about = score.attack, score.dataset, score.eps, self.stored.sample_id
        return Disagreement(*about, self.stored.broken_by, self.here.broken_by)

    def counterexample(self, source: str) -> Counterexample:
        """Return the recomputed adversarial example as a counterexample with this source."""
        about = self.evidence.score.dataset, self.here.sample_id, self.evidence.threat.norm
        return Counterexample(*about, self.here.distance, self.here.adversarial_prediction, source)


@dataclass(frozen=True)
class RecomputedPart:
    """Numbers of recomputed and of differing verdicts in one part of an entry."""

    name: str
    """One of `PARTS`."""
    verdicts: int
    """Number of recomputed verdicts."""
    wrong: int
    too_high: int
    """Number of samples that are robust in the stored records and broken in the recomputed ones."""
    bound: float
    """Upper limit of the share of wrong verdicts in the part, with 95 % confidence (exact binomial, Clopper and Pearson
    1934). If the whole part was recomputed, the share itself."""

    @property
    def exceeds_tolerance(self) -> bool:
        """Whether more verdicts differ, in either direction, than other hardware explains."""
        # Both directions count, because records that are too low would harm a competitor.
        return exceeds_tolerance(self.wrong, self.verdicts)


def summarize_part(name: str, samples: Sequence[RecomputedSample], *, is_full: bool) -> RecomputedPart:
    """Return the counts of one or more recomputed samples; `is_full` says that they are all samples of the part."""
    disagreements = [sample.disagreement for sample in samples if sample.is_wrong]
    wrong, too_high = len(disagreements), sum(each.is_favourable for each in disagreements)
    bound = wrong / len(samples) if is_full else upper_bound(wrong, len(samples))
    return RecomputedPart(name, len(samples), wrong, too_high, bound)


def missing_warnings(samples: Sequence[RecomputedSample]) -> tuple[str, ...]:
    """Return a problem if too many stored records lack warnings that the recomputed samples have.

    "Too many" means more than the tolerance allows. Returns () if there is no problem.
    """
    same = [(sample.stored, sample.here) for sample in samples if not sample.is_wrong]
    missing = [set(here.warnings.split(",")) - set(stored.warnings.split(",")) - {""} for stored, here in same]
    count = sum(map(bool, missing))
    if not count or not exceeds_tolerance(count, len(samples)):
        return ()
    return (f"the records of {count} samples leave out the warnings {', '.join(sorted(set().union(*missing)))}",)


def _verdict(result: SampleResult) -> str:
    return result.broken_by if result.broken_by in ("", CLEAN) else "broken"
