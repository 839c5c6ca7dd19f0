"""Warnings of masked gradients: an entry with such warnings needs a stronger attack on record before it is ranked."""

from collections.abc import Iterable

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.engine.warnings import ZERO_GRADIENT_CODES
from robustbench_vlm.tracks import Track

MASKING = frozenset(
    (
        "zero-gradient",
        "no-gradient",
        "non-finite-gradient",
        "unstable-output",
        "batch-dependent",
        "probability-logits",
        "black-box-wins",
        "rises-with-eps",
    )
)
"""Codes of warnings that the attack may have failed for a technical reason, so the robust accuracy may be too high."""
FEW = 0.01
"""Largest share of samples with masking warnings that an entry may have without a stronger attack."""


def needs_stronger_attack(evidence: Iterable[CellRecords], track: Track) -> bool:
    """Return whether an entry has masking warnings on too many samples and lacks a stronger attack.

    Only the standard radius of the track counts. A warning "code:N" is about N samples. A warning without a number is
    about all samples of its dataset. An attack is stronger if its `strength` is larger than that of the track's attack,
    and it must cover each dataset with a masking warning.
    """
    threat = Threat(track.norm, track.standard_eps)
    cells = [each for each in evidence if each.threat == threat]
    standard = [each for each in cells if each.score.attack == track.attack]
    masked = {each.score.dataset: _masked(each) for each in standard}
    if sum(masked.values()) <= FEW * sum(each.score.n for each in standard):
        return False
    strength = load_attack(track.attack).strength or 0
    covered = {each.score.dataset for each in cells if (_strength(each.score.attack) or 0) > strength}
    return not {name for name, count in masked.items() if count} <= covered


def _strength(attack: str) -> int | None:
    return load_attack(attack).strength


def _masked(evidence: CellRecords) -> int:
    """Return the largest number of samples of a cell with one masking warning."""
    found = [code.partition(":") for code in evidence.score.warnings]
    return max(
        (
            int(count) if count.isdecimal() else evidence.score.n
            for code, _, count in found
            if code in MASKING or code.startswith(ZERO_GRADIENT_CODES)
        ),
        default=0,
    )
