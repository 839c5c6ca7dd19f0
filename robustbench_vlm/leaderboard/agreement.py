"""How the verdicts on record agree with those that were computed again."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.leaderboard.entry import Counterexample
from robustbench_vlm.leaderboard.tolerance import is_more_than_honest, upper_bound

PARTS = ("ranked", "others")
"""The verdicts that the rank rests on, and those of other attacks and radii."""


@dataclass(frozen=True)
class Disagreement:
    """A verdict that this machine does not confirm."""

    attack: str
    dataset: str
    eps: str
    sample_id: str
    stored: str
    """`broken_by` on record."""
    found: str
    """`broken_by` here."""

    @property
    def is_favourable(self) -> bool:
        """Whether the record says robust and the attack succeeds here: what makes a number too high."""
        return self.stored == ""


@dataclass(frozen=True)
class Again:
    """A sample on record, and what its attack finds here."""

    evidence: Evidence
    """The record of its cell."""
    position: int
    """Its place in that cell."""
    here: SampleResult

    @property
    def stored(self) -> SampleResult:
        """The sample's record."""
        return self.evidence.results[self.position]

    @property
    def is_wrong(self) -> bool:
        """Whether the verdict is another one here."""
        return _verdict(self.stored) != _verdict(self.here)

    @property
    def is_broken(self) -> bool:
        """Whether the attack succeeds here."""
        return _verdict(self.here) == "broken"

    @property
    def disagreement(self) -> Disagreement:
        """What the record says and what was found here."""
        score = self.evidence.score
        about = score.attack, score.dataset, score.eps, self.stored.sample_id
        return Disagreement(*about, self.stored.broken_by, self.here.broken_by)

    def counterexample(self, by: str) -> Counterexample:
        """Return what breaks the sample here, as found `by` somebody."""
        about = self.evidence.score.dataset, self.here.sample_id, self.evidence.threat.norm
        return Counterexample(*about, self.here.distance, self.here.adversarial_prediction, by)


@dataclass(frozen=True)
class Part:
    """What was found of a part of an entry's verdicts."""

    name: str
    """One of `PARTS`."""
    verdicts: int
    """How many were computed again."""
    wrong: int
    too_high: int
    bound: float
    """At most this share of the part's verdicts is wrong: with 95 % confidence (exact binomial, Clopper and Pearson
    1934), or for certain where all were computed again."""

    @property
    def is_more_than_honest(self) -> bool:
        """Whether more came out otherwise, either way, than an honest entry's would."""
        # Either way: records that say too little pull a rival's number down.
        return is_more_than_honest(self.wrong, self.verdicts)


def part_of(name: str, pairs: Sequence[Again], *, is_full: bool) -> Part:
    """Return what of at least one verdict came out otherwise; `is_full`: these are all of the part."""
    disagreements = [pair.disagreement for pair in pairs if pair.is_wrong]
    wrong, too_high = len(disagreements), sum(each.is_favourable for each in disagreements)
    bound = wrong / len(pairs) if is_full else upper_bound(wrong, len(pairs))
    return Part(name, len(pairs), wrong, too_high, bound)


def erased_warnings(pairs: Sequence[Again]) -> tuple[str, ...]:
    """Return a sentence where more samples raise warnings here, but not on record, than an honest entry's would."""
    same = [(pair.stored, pair.here) for pair in pairs if not pair.is_wrong]
    missing = [set(here.warnings.split(",")) - set(stored.warnings.split(",")) - {""} for stored, here in same]
    count = sum(map(bool, missing))
    if not count or not is_more_than_honest(count, len(pairs)):
        return ()
    return (f"the records of {count} samples leave out the warnings {', '.join(sorted(set().union(*missing)))}",)


def _verdict(result: SampleResult) -> str:
    return result.broken_by if result.broken_by in ("", CLEAN) else "broken"
