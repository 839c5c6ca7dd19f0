"""Tests of the names of attacks and of the messages about unknown names."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_vlm.attacks import ATTACKS, load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint


def test_every_attack_has_a_different_fingerprint() -> None:
    names = [*ATTACKS.table, "pgd-7", "pyautoattack:apgd-dlr", "pyautoattack:square"]
    attacks = [load_attack(name) for name in names]
    assert all(isinstance(attack, Attack) for attack in attacks)
    assert [attack.name for attack in attacks] == names
    assert len({fingerprint([stage.identity for stage in attack.stages]) for attack in attacks}) == len(names)


def test_autoattack_is_the_standard_version() -> None:
    stages = {stage.name: dict(stage.parameters) for stage in load_attack("autoattack").stages}
    assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert stages["apgd-ce"]["steps"] == 100 and stages["apgd-ce"]["restarts"] == 1
    assert stages["apgd-t"]["steps"] == 100 and stages["apgd-t"]["targets"] == 9
    assert stages["fab-t"]["steps"] == 100 and stages["fab-t"]["targets"] == 9
    assert stages["square"]["queries"] == 5000


@given(st.integers(1, 99999))
def test_pgd_accepts_any_number_of_steps(steps: int) -> None:
    (stage,) = load_attack(f"pgd-{steps}").stages
    assert stage.parameters["steps"] == steps


def test_pyautoattack_standard_is_pyautoattack() -> None:
    assert load_attack("pyautoattack:standard") == load_attack("pyautoattack")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("autoatack", "Did you mean .*autoattack"),
        ("pgd-", "give a number of steps"),
        ("pgd-0", "give a number of steps"),
        ("pgd-ten", "give a number of steps"),
        ("pyautoattack:apgdt", "Did you mean apgd-t"),
        ("", "unknown attack"),
    ],
)
def test_the_message_about_an_unknown_attack_lists_allowed_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_attack(name)


def test_listing_attacks_does_not_import_torch() -> None:
    code = "import sys, robustbench_vlm.attacks as attacks; attacks.ATTACKS.names(); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
