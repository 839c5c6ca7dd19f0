"""Attacks from the released code of defenses. The code calls them "AutoAttack" or "CW", but they are weaker.

Protocols that reproduce published numbers use these attacks.
"""

from typing import Any

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack, Stage, one_stage_attack
from robustbench_vlm.attacks.pgd import pgd_stage


def _apgd(name: str, loss: str, *, steps: int, targets: int = 0, restarts: int = 1) -> Stage:
    return apgd_stage(name, loss=loss, steps=steps, targets=targets, restarts=restarts)


def _margin_pgd(name: str, steps: int, **parameters: Any) -> Stage:
    return pgd_stage(
        name, steps=steps, loss="margin", iterate="final", random_start=True, step_size="1/255", **parameters
    )


AGFT_AUTOATTACK = Attack(
    "agft-autoattack",
    (
        _apgd("apgd-ce-10", "softmax-ce", steps=10),
        _apgd("apgd-dlr-10", "dlr", steps=10),
    ),
    "APGD-CE and APGD-DLR with 10 steps each. The code of AGFT calls this AutoAttack",
    paper="YuboCui/AGFT 0031a8f, attacks/autoattack.py",
)
AGFT_CW = one_stage_attack(
    _margin_pgd("agft-cw", 20, mean_over=128),
    "PGD with 20 steps of 1/255 on the margin. Only the final iterate is tested. The code of AGFT calls this CW",
    paper="YuboCui/AGFT 0031a8f, attacks/cw.py",
    norms=("Linf",),
)
TECOA_AUTOATTACK = Attack(
    "tecoa-autoattack",
    (
        _apgd("apgd-ce", "softmax-ce", steps=100),
        _apgd("apgd-dlr", "dlr", steps=100),
    ),
    "APGD-CE and APGD-DLR. The code of TeCoA and TGA-ZSR calls this AutoAttack",
    paper="cvlab-columbia/ZSRobust4FoundationModel 1243db6, attacks.py",
)
TECOA_CW = one_stage_attack(
    _margin_pgd("tecoa-cw", 100),
    "PGD with 100 steps of 1/255 on the margin. Only the final iterate is tested. The code of TeCoA and TGA-ZSR"
    " calls this CW",
    paper="cvlab-columbia/ZSRobust4FoundationModel 1243db6, attacks.py",
    norms=("Linf",),
)
FARE_AUTOATTACK = Attack(
    "fare-autoattack",
    (
        _apgd("apgd-ce-5x", "softmax-ce", steps=100, restarts=5),
        _apgd("apgd-t", "targeted-dlr", steps=100, targets=9),
    ),
    "APGD-CE with 5 restarts, and APGD-T; the code of FARE calls this AutoAttack",
    paper="chs20/RobustVLM 7de10ee, autoattack/autoattack.py",
)
