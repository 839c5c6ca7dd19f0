"""Compare recomputed records with the stored records of an entry, and count the differences.

A verdict says whether a sample is misclassified without an attack, broken by the attack, or robust. On a machine with
equal hardware and software, records are equal bit by bit, so every difference contradicts the entry. On other hardware,
rounding may change the verdict of a sample whose strongest image is near the decision boundary. A difference far from
the boundary contradicts the entry.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import CLEAN, SampleResult, Verdict
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.history import AttestedPart, Disagreement
from robustbench_vlm.leaderboard.recompute import Recomputed, Task
from robustbench_vlm.leaderboard.tolerance import CLOSE_MARGIN, ROUNDING, exceeds_tolerance, upper_bound

_MOST_PASSES = 2
"""A stored number of passes may be at most this many times the recomputed number of a sample that survives the attack.
On other hardware, a stage may need more steps to break a sample."""


@dataclass(frozen=True)
class Comparison:
    """A sample that was attacked again: its stored record and its new record."""

    evidence: CellRecords
    task: Task
    here: Recomputed
    is_equal_machine: bool

    @property
    def stored(self) -> SampleResult:
        """The sample's stored record."""
        return self.evidence.results[self.task.position]

    @property
    def is_wrong(self) -> bool:
        """True if the stored and the recomputed verdict differ."""
        return _verdict(self.stored) != _verdict(self.here.result)

    @property
    def is_too_high(self) -> bool:
        """True if no stage breaks the sample in the stored record, and one does in the recomputed record."""
        return _verdict(self.stored) == "" and _verdict(self.here.result) == "broken"

    @property
    def is_whole_attack(self) -> bool:
        """True if all stages of the attack were run."""
        return self.task.stages >= len(self.evidence.identity["attack"]["stages"])

    @property
    def reason(self) -> str:
        """The reason why rounding cannot explain the differences between the records, or ""."""
        stored, here, eps = self.stored, self.here.result, float(self.evidence.threat.eps)
        if self.is_wrong and abs(self.here.margin) > CLOSE_MARGIN:
            return f"the strongest image has the margin {self.here.margin:.4f}, which rounding cannot change"
        if self.is_equal_machine and _exact(stored) != _exact(here):
            return "equal hardware and software give another record"
        is_same_stage = stored.broken_by == here.broken_by != ""
        if is_same_stage and abs(stored.distance - here.distance) > eps / 2:
            return f"the distance is {stored.distance:.4g} in the records and {here.distance:.4g} here"
        if self.is_whole_attack and here.broken_by == "" and _passes(stored) > _MOST_PASSES * _passes(here):
            return f"the records have {_passes(stored)} passes, and this machine needs {_passes(here)}"
        return ""

    @property
    def disagreement(self) -> Disagreement:
        """The stored and the recomputed verdict."""
        score = self.evidence.score
        about = score.attack, score.dataset, score.eps, self.stored.sample_id
        return Disagreement(*about, self.stored.broken_by, self.here.result.broken_by, self.reason)


def summarize(
    comparisons: Sequence[Comparison], cells: Sequence[CellRecords], drawn: Collection[Task], nearest: int
) -> AttestedPart:
    """Return the counts of one part: the recomputed samples under one attack at one radius.

    `cells` has the records of the part. `drawn` has the robust samples that were drawn at random and attacked with all
    stages. `nearest` is the number of samples that were chosen by their margin.
    """
    robust = [each for each in comparisons if each.stored.verdict is Verdict.ROBUST]
    places = {_place(each.task) for each in robust}
    count = sum(result.verdict is Verdict.ROBUST for cell in cells for result in cell.results)
    samples = sum(len(cell.results) for cell in cells)
    fallen = {_place(each.task) for each in robust if each.is_too_high}
    failed = {_place(each.task) for each in robust if each.is_too_high and each.task in drawn}
    share = upper_bound(len(failed), len(drawn)) if len(drawn) < count else 0.0
    return AttestedPart(
        attack=cells[0].score.attack,
        eps=cells[0].score.eps,
        samples=samples,
        robust=count,
        first=len(places),
        nearest=nearest,
        drawn=len(drawn),
        broken=len({_place(each.task) for each in comparisons} - places),
        wrong=len({_place(each.task) for each in comparisons if each.is_wrong}),
        too_high=len(fallen),
        bound=max(share * count, len(fallen)) / samples,
    )


def contradictions(comparisons: Sequence[Comparison], part: AttestedPart) -> list[str]:
    """Return sentences that describe how the recomputed samples of a part contradict the entry."""
    about = f"{part.attack} at {part.eps}"
    reasons = [each.reason for each in comparisons if each.reason]
    found = []
    if reasons:
        found.append(f"{about}: rounding cannot explain {len(reasons)} of the records; for the first, {reasons[0]}")
    elif part.wrong and exceeds_tolerance(part.wrong, part.first + part.broken, ROUNDING):
        found.append(f"{about}: {part.wrong} verdicts differ, which are more than rounding explains")
    return [*found, *(f"{about}: {sentence}" for sentence in _missing_warnings(comparisons))]


def _missing_warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a sentence that lists the warnings that are missing in stored records but not in recomputed records.

    The result is empty if the tolerance allows so many records without the warnings. Warnings of stages that were not
    run again are not compared.
    """
    same = [(each.stored, each.here.result) for each in comparisons if not each.is_wrong]
    missing = [_codes(here) - _codes(stored) for stored, here in same]
    count = sum(map(bool, missing))
    if not count or not exceeds_tolerance(count, len(comparisons)):
        return []
    return [f"the records of {count} samples lack the warnings {', '.join(sorted(set().union(*missing)))}"]


def _codes(result: SampleResult) -> set[str]:
    return set(result.warnings.split(",")) - {""}


def _verdict(result: SampleResult) -> str:
    """Return "", "clean" or "broken". A sample that is not finished survived the stages that attacked it."""
    if result.broken_by == CLEAN:
        return CLEAN
    return "broken" if result.verdict is Verdict.BROKEN else ""


def _exact(result: SampleResult) -> tuple[str, int, float]:
    """Return the fields that are equal bit by bit on equal hardware, also if the attack stops after a stage."""
    stage = result.broken_by if result.verdict is Verdict.BROKEN else ""
    return stage, result.adversarial_prediction, result.distance


def _passes(result: SampleResult) -> int:
    return result.forward + result.backward


def _place(task: Task) -> tuple[int, int]:
    return task.cell, task.position
