"""The attacks themselves, as data: every parameter of every stage stands here."""

import dataclasses
import re
from typing import Any, Literal

from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.attacks.fab import fab_stage
from robustbench_vlm.attacks.pgd import pgd_stage
from robustbench_vlm.attacks.pyautoattack import PARTS, pyautoattack_stage
from robustbench_vlm.attacks.square import square_stage
from robustbench_vlm.attacks.torchattacks import norms_of, torchattacks_stage
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown

_AUTOATTACK_PAPER = "arXiv:2003.01690"


def one_stage(stage: Stage, description: str, paper: str, norms: tuple[str, ...] = ("Linf", "L2")) -> Attack:
    """Return the attack that is just this stage."""
    return Attack(stage.name, (stage,), description, norms, paper)


def pgd_attack(steps: int, *, iterate: Literal["final", "best"] = "best", step_size: str | None = None) -> Attack:
    """Return PGD on cross-entropy from a random start.

    `step_size` is a fraction of the pixel range such as "1/255", as papers fix it; without it a step is eps / 4.
    """
    parameters: dict[str, Any] = {"steps": steps, "loss": "ce", "iterate": iterate, "random_start": True}
    parameters |= {"step_size": step_size} if step_size else {"relative_step": 0.25}
    kept = "every iterate counts" if iterate == "best" else "only the final iterate counts"
    return one_stage(
        pgd_stage(f"pgd-{steps}", **parameters), f"PGD, {steps} steps on cross-entropy, {kept}", "arXiv:1706.06083"
    )


FGSM = one_stage(
    pgd_stage("fgsm", steps=1, loss="ce", iterate="final", random_start=False, relative_step=1.0),
    "one step of eps along the gradient's sign",
    "arXiv:1412.6572",
)
PGD_10, PGD_20, PGD_50, PGD_100 = (pgd_attack(steps) for steps in (10, 20, 50, 100))
CW = one_stage(
    pgd_stage("cw", steps=100, loss="margin", iterate="best", random_start=True, relative_step=0.25),
    "PGD, 100 steps on the margin of the logits, as the field calls CW within a ball",
    "arXiv:1608.04644",
    norms=("Linf",),
)

_APGD_CE = apgd_stage("apgd-ce", loss="ce", steps=100, targets=0, restarts=1)
_APGD_DLR = apgd_stage("apgd-dlr", loss="dlr", steps=100, targets=0, restarts=1)
_APGD_T = apgd_stage("apgd-t", loss="targeted-dlr", steps=100, targets=9, restarts=1)
_FAB_T = fab_stage("fab-t", steps=100, targets=9, eta=1.05, beta=0.9, alpha_max=0.1)
_SQUARE_5000 = square_stage("square", queries=5000, p_init=0.8)

APGD_CE = one_stage(_APGD_CE, "APGD, 100 steps on cross-entropy", _AUTOATTACK_PAPER)
APGD_DLR = one_stage(_APGD_DLR, "APGD, 100 steps on the difference of logits ratio", _AUTOATTACK_PAPER)
APGD_T = one_stage(_APGD_T, "targeted APGD, 9 targets of 100 steps each", _AUTOATTACK_PAPER)
FAB_T = one_stage(_FAB_T, "targeted FAB, 9 targets of 100 steps each", "arXiv:1907.02044")
SQUARE = one_stage(_SQUARE_5000, "Square Attack, 5000 queries", "arXiv:1912.00049")
AUTOATTACK = Attack(
    "autoattack",
    (_APGD_CE, _APGD_T, _FAB_T, _SQUARE_5000),
    "AutoAttack, the standard version: APGD-CE, APGD-T, FAB-T, Square",
    paper=_AUTOATTACK_PAPER,
)

_OFFICIAL_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PYAUTOATTACK = Attack(
    "pyautoattack",
    tuple(pyautoattack_stage(name) for name in _OFFICIAL_STANDARD),
    "the official AutoAttack package, its standard version",
    paper=_AUTOATTACK_PAPER,
)


def pgd_named(steps: str) -> Attack:
    """Return the attack "pgd-N"; raise UserError where N is not a number of steps."""
    if not re.fullmatch(r"[1-9]\d{0,4}", steps):
        raise UserError(f"unknown attack 'pgd-{steps}': write a number of steps from 1 to 99999, as in pgd-20")
    return pgd_attack(int(steps))


def pyautoattack_named(name: str) -> Attack:
    """Return one attack of the official package, or its standard version; raise UserError for another name."""
    if name == "standard":
        return PYAUTOATTACK
    if name not in PARTS:
        raise UserError(unknown("attack of pyautoattack", name, [*PARTS, "standard"]))
    return one_stage(
        pyautoattack_stage(name),
        f"{name} of the official AutoAttack package",
        _AUTOATTACK_PAPER,
    )


def torchattacks_named(name: str) -> Attack:
    """Return an attack of the library torchattacks with its default parameters.

    Raises UserError where the library is missing or has no attack of that name.
    """
    norms = norms_of(name)
    attack = one_stage(torchattacks_stage(name), f"{name} of torchattacks", "")
    return dataclasses.replace(attack, norms=norms)
