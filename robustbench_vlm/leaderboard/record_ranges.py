"""Static checks of the values in an entry's records: classes, margins, distances and numbers of passes.

No score follows from these values directly, so `engine.cell_records.checked` does not compare them with the scores. A
forged record often has impossible values.
"""

import math
from collections.abc import Sequence

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.classifier_interface import PlainClassifier
from robustbench_vlm.core.records import CLEAN, SampleResult, Verdict
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.tolerance import CLOSE_MARGIN
from robustbench_vlm.models.reference import parse_reference
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import TRACKS

_LARGEST_MARGIN = 2.0 + CLOSE_MARGIN
"""Largest possible margin: the difference of two cosine similarities, each in [-1, 1] up to rounding."""
_MOST_PASSES = 10**9
"""Largest accepted number of passes of one sample, for attacks and defenses whose number of passes is not known."""


def check_ranges(entry: Entry, evidence: Sequence[CellRecords]) -> None:
    """Raise Unsound if a record of an entry has an impossible value. The message names the first such record.

    `evidence` has the records of the entry. The logits of a test-time defense are not cosine similarities, so their
    margins may have any size.
    """
    limit = math.inf if parse_reference(entry.model).defense else _LARGEST_MARGIN
    for each in evidence:
        for row in each.results:
            if problem := _problem(row, each.score.classes, limit):
                raise _impossible(each, row, problem)


def check_passes(entry: Entry, evidence: Sequence[CellRecords]) -> None:
    """Raise Unsound if a record has more passes than its attack needs for a robust sample.

    The number is known exactly for models without a test-time defense. The attacks of the entry must be those of this
    package.
    """
    # A board is read without this check, and without torch.
    from robustbench_vlm.engine.cost import attack_passes
    from robustbench_vlm.test_time.defended_model import checked_reference

    if checked_reference(entry.model).defense:
        return
    protocol: Protocol = PROTOCOLS.load(TRACKS.load(entry.track).leaderboard_protocol)
    classifier = PlainClassifier(lambda images: images)
    for each in evidence:
        attack = protocol.adapt_attack(load_attack(each.score.attack), each.threat.norm)
        forward, backward = attack_passes(attack, each.score.classes, classifier)
        row = next((row for row in each.results if row.forward > forward or row.backward > backward), None)
        if row:
            raise _impossible(
                each,
                row,
                f"has {row.forward} forward and {row.backward} backward passes, but the attack {attack.name} needs at"
                f" most {forward} and {backward}",
            )


def _problem(row: SampleResult, classes: int, largest_margin: float) -> str:
    """Return a description of the first impossible value in a record, or "" if all values are possible."""
    margin, is_attacked = row.margin, row.verdict is Verdict.BROKEN and row.broken_by != CLEAN
    indices = row.label, row.clean_prediction, row.adversarial_prediction
    if min(indices) < 0 or max(indices) >= classes:
        return f"has a class outside 0 to {classes - 1}"
    if margin < 0 if row.clean_prediction == row.label else margin > 0:
        return f"has the margin {margin}, which has the wrong sign for its clean prediction"
    if abs(margin) > largest_margin:
        return f"has the margin {margin}, but the difference of two cosine similarities is at most 2"
    if row.distance and not is_attacked:
        return "has a distance, but no attack changed its prediction"
    if is_attacked and not row.distance and margin > CLOSE_MARGIN:
        return "is broken at the distance 0"
    if not (1 <= row.forward <= _MOST_PASSES and 0 <= row.backward <= _MOST_PASSES):
        return f"has {row.forward} forward and {row.backward} backward passes, which no attack needs"
    return ""


def _impossible(evidence: CellRecords, row: SampleResult, problem: str) -> Unsound:
    score = evidence.score
    return Unsound(
        f"the record {row.sample_id} of {score.model} / {score.attack} / {score.dataset} / {evidence.threat} {problem}:"
        " restore the records that the run wrote"
    )
