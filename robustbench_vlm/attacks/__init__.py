"""Registry of attacks, and `load_attack`, which returns an attack by name. This module does not import torch."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import Registry, unknown

if TYPE_CHECKING:
    from robustbench_vlm.attacks.base import Attack

ATTACKS = Registry(
    "attack",
    {
        "fgsm": "robustbench_vlm.attacks.pgd:FGSM",
        "pgd-10": "robustbench_vlm.attacks.pgd:PGD_10",
        "pgd-20": "robustbench_vlm.attacks.pgd:PGD_20",
        "pgd-50": "robustbench_vlm.attacks.pgd:PGD_50",
        "pgd-100": "robustbench_vlm.attacks.pgd:PGD_100",
        "cw": "robustbench_vlm.attacks.pgd:CW",
        "apgd-ce": "robustbench_vlm.attacks.autoattack:APGD_CE",
        "apgd-dlr": "robustbench_vlm.attacks.autoattack:APGD_DLR",
        "apgd-t": "robustbench_vlm.attacks.autoattack:APGD_T",
        "fab-t": "robustbench_vlm.attacks.autoattack:FAB_T",
        "square": "robustbench_vlm.attacks.autoattack:SQUARE",
        "autoattack": "robustbench_vlm.attacks.autoattack:AUTOATTACK",
        "autoattack-rand": "robustbench_vlm.attacks.autoattack:AUTOATTACK_RAND",
        "autoattack-plus": "robustbench_vlm.attacks.autoattack_plus:AUTOATTACK_PLUS",
        "adaptive": "robustbench_vlm.attacks.adaptive:ADAPTIVE",
        "pma": "robustbench_vlm.attacks.probability_margin_attack:PMA",
        "malt": "robustbench_vlm.attacks.malt:MALT",
        "apgd-rescaled": "robustbench_vlm.attacks.rescaled:APGD_RESCALED",
        "apgd-features": "robustbench_vlm.attacks.feature_attack:APGD_FEATURES",
        "min-eps": "robustbench_vlm.attacks.min_eps:MIN_EPS",
        "pyautoattack": "robustbench_vlm.attacks.pyautoattack:PYAUTOATTACK",
        "agft-autoattack": "robustbench_vlm.attacks.published:AGFT_AUTOATTACK",
        "agft-cw": "robustbench_vlm.attacks.published:AGFT_CW",
        "fare-autoattack": "robustbench_vlm.attacks.published:FARE_AUTOATTACK",
        "tecoa-autoattack": "robustbench_vlm.attacks.published:TECOA_AUTOATTACK",
        "tecoa-cw": "robustbench_vlm.attacks.published:TECOA_CW",
    },
)

FAMILIES = {
    "pgd-": ("pgd-N", "robustbench_vlm.attacks.pgd:pgd_named"),
    "pyautoattack:": ("pyautoattack:NAME", "robustbench_vlm.attacks.pyautoattack:pyautoattack_named"),
    "torchattacks:": ("torchattacks:NAME", "robustbench_vlm.attacks.torchattacks:torchattacks_named"),
}
"""Families of attacks: all attacks with the same prefix in their names, such as "pgd-". The keys are these prefixes.
Each value is a pair: the form of the names, such as "pgd-N", and the import path of a function. The function takes the
rest of the name, such as "40", and returns the attack."""


_FILE_ENDING = ".json"


def is_registered(name: str) -> bool:
    """Return whether an attack or a family of attacks has this name. Attacks of attack files do not have such names."""
    return name in ATTACKS.names() or name.startswith(tuple(FAMILIES))


def check_attack_name(name: str) -> None:
    """Raise UserError if no attack and no family of attacks has this name. No attack is imported.

    A name that ends in ".json" must be the path of a file.
    """
    if name.endswith(_FILE_ENDING):
        if not Path(name).is_file():
            wrong = "is not a regular file" if Path(name).exists() else "does not exist"
            raise UserError(f"the attack file {name} {wrong}: give the path of an attack file")
        return
    if not is_registered(name):
        allowed = [*ATTACKS.names(), *(form for form, _ in FAMILIES.values())]
        raise UserError(unknown("attack", name, allowed, "vlmbench list attacks"))


def load_attack(name: str) -> "Attack":
    """Return the attack with the given name.

    The name is in `ATTACKS`, or it belongs to a family, such as "pgd-40" or "torchattacks:PGD". It may also be the path
    of an attack file, such as "found.json" (`attacks.attack_file`).

    Raises UserError if the name is unknown, if the attack needs a library that is not installed, or if an attack file
    is not valid.
    """
    check_attack_name(name)
    if name.endswith(_FILE_ENDING):
        from robustbench_vlm.attacks.attack_file import read_attack_file

        return read_attack_file(Path(name))
    if name in ATTACKS.names():
        attack: Attack = ATTACKS.load(name)
        return attack
    prefix = next(prefix for prefix in FAMILIES if name.startswith(prefix))
    module, _, function = FAMILIES[prefix][1].partition(":")
    built: Attack = getattr(importlib.import_module(module), function)(name.removeprefix(prefix))
    return built
