"""The attacks themselves, as data: every parameter of every stage stands here."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from robustbench_vlm.attacks.stage import Attack, Stage
from robustbench_vlm.errors import UserError
from robustbench_vlm.registry import unknown

_APGD = "robustbench_vlm.attacks.apgd:apgd"
_PGD = "robustbench_vlm.attacks.gradient:pgd"
_FAB = "robustbench_vlm.attacks.fab:fab"
_SQUARE = "robustbench_vlm.attacks.square:square"
_OFFICIAL = "robustbench_vlm.attacks.official:official"
_LIBRARY = "robustbench_vlm.attacks.library:torchattacks_stage"
_AUTOATTACK_PAPER = "arXiv:2003.01690"


def own_stage(name: str, function: str, parameters: Mapping[str, Any]) -> Stage:
    """Return a stage that this package computes; all of them take samples of several data sets at once."""
    return Stage(name, function, parameters, takes_mixed=True)


def one_stage(stage: Stage, description: str, paper: str, norms: tuple[str, ...] = ("Linf", "L2")) -> Attack:
    """Return the attack that is just this stage."""
    return Attack(stage.name, (stage,), description, norms, paper)


def pgd_attack(steps: int, *, keep: Literal["final", "best"] = "best", step_size: str | None = None) -> Attack:
    """Return PGD on cross-entropy from a random start.

    `step_size` is a fraction of the pixel range such as "1/255", as papers fix it; without it a step is eps / 4.
    """
    parameters: dict[str, Any] = {"steps": steps, "loss": "ce", "keep": keep, "random_start": True}
    parameters |= {"step_size": step_size} if step_size else {"relative_step": 0.25}
    kept = "every iterate counts" if keep == "best" else "only the final iterate counts"
    return one_stage(
        own_stage(f"pgd-{steps}", _PGD, parameters), f"PGD, {steps} steps on cross-entropy, {kept}", "arXiv:1706.06083"
    )


FGSM = one_stage(
    own_stage("fgsm", _PGD, {"steps": 1, "loss": "ce", "keep": "final", "random_start": False, "relative_step": 1.0}),
    "one step of eps along the gradient's sign",
    "arXiv:1412.6572",
)
PGD_10, PGD_20, PGD_50, PGD_100 = (pgd_attack(steps) for steps in (10, 20, 50, 100))
_MARGIN_PGD = {"steps": 100, "loss": "margin", "keep": "best", "random_start": True, "relative_step": 0.25}
CW = one_stage(
    own_stage("cw", _PGD, _MARGIN_PGD),
    "PGD, 100 steps on the margin of the logits, as the field calls CW within a ball",
    "arXiv:1608.04644",
    norms=("Linf",),
)

_APGD_CE = own_stage("apgd-ce", _APGD, {"loss": "ce", "steps": 100, "targets": 0, "restarts": 1})
_APGD_DLR = own_stage("apgd-dlr", _APGD, {"loss": "dlr", "steps": 100, "targets": 0, "restarts": 1})
_APGD_T = own_stage("apgd-t", _APGD, {"loss": "targeted-dlr", "steps": 100, "targets": 9, "restarts": 1})
_FAB_T = own_stage("fab-t", _FAB, {"steps": 100, "targets": 9, "overshoot": 1.05, "backward": 0.9, "pull": 0.1})
_SQUARE_5000 = own_stage("square", _SQUARE, {"queries": 5000, "share": 0.8})

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

_OFFICIAL_NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
_OFFICIAL_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PYAUTOATTACK = Attack(
    "pyautoattack",
    tuple(Stage(f"pyautoattack:{name}", _OFFICIAL, {"attack": name}) for name in _OFFICIAL_STANDARD),
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
    if name not in _OFFICIAL_NAMES:
        raise UserError(unknown("attack of pyautoattack", name, [*_OFFICIAL_NAMES, "standard"]))
    return one_stage(
        Stage(f"pyautoattack:{name}", _OFFICIAL, {"attack": name}),
        f"{name} of the official AutoAttack package",
        _AUTOATTACK_PAPER,
    )


def torchattacks_named(name: str) -> Attack:
    """Return an attack of the library torchattacks with its default parameters.

    Raises UserError where the library is missing or has no attack of that name.
    """
    from robustbench_vlm.attacks.library import norms_of

    norms = norms_of(name)
    attack = one_stage(Stage(f"torchattacks:{name}", _LIBRARY, {"attack": name}), f"{name} of torchattacks", "")
    return dataclasses.replace(attack, norms=norms)
