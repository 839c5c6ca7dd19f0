"""The versions "standard" and "rand" of AutoAttack, and its single attacks, with all parameters (arXiv:2003.01690)."""

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack, one_stage_attack
from robustbench_vlm.attacks.fab import fab_stage
from robustbench_vlm.attacks.square import square_stage

_PAPER = "arXiv:2003.01690"
_STRENGTH = 1_000_000
"""The `Attack.strength` of AutoAttack. It is higher than the strength of every pgd-N."""

_APGD_CE = apgd_stage("apgd-ce", loss="ce", steps=100, targets=0, restarts=1)
_APGD_DLR = apgd_stage("apgd-dlr", loss="dlr", steps=100, targets=0, restarts=1)
_APGD_T = apgd_stage("apgd-t", loss="targeted-dlr", steps=100, targets=9, restarts=1)
_FAB_T = fab_stage("fab-t", steps=100, targets=9, eta=1.05, beta=0.9, alpha_max=0.1)
_SQUARE = square_stage("square", queries=5000, p_init=0.8)

AUTOATTACK = Attack(
    "autoattack",
    (_APGD_CE, _APGD_T, _FAB_T, _SQUARE),
    "standard version of AutoAttack: APGD-CE, APGD-T, FAB-T and Square",
    paper=_PAPER,
    strength=_STRENGTH,
)
AUTOATTACK_RAND = Attack(
    "autoattack-rand",
    (_APGD_CE, _APGD_DLR),
    "the stages of AutoAttack's version rand for random models: APGD-CE and APGD-DLR; add --draws",
    paper=_PAPER,
)
APGD_CE = one_stage_attack(_APGD_CE, "APGD, 100 steps on cross-entropy", paper=_PAPER)
APGD_DLR = one_stage_attack(_APGD_DLR, "APGD, 100 steps on the difference of logits ratio", paper=_PAPER)
APGD_T = one_stage_attack(_APGD_T, "targeted APGD, 9 targets of 100 steps each", paper=_PAPER)
FAB_T = one_stage_attack(_FAB_T, "targeted FAB, 9 targets of 100 steps each", paper="arXiv:1907.02044")
SQUARE = one_stage_attack(_SQUARE, "Square Attack, 5000 queries", paper="arXiv:1912.00049")
