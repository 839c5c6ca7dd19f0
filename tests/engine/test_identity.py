"""Test identities: they have names and versions of algorithms, but no import paths."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robustbench_vlm import evaluate
from robustbench_vlm.attacks import ATTACKS, load_attack
from robustbench_vlm.attacks.base import Attack
from robustbench_vlm.core.fingerprint import canonical
from robustbench_vlm.defenses.agft import AGFT
from robustbench_vlm.engine.cell import Cell


def test_moving_a_stage_function_to_another_module_keeps_the_fingerprint(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = load_attack("pgd-10")
    (stage,) = attack.stages
    module, _, name = stage.function.partition(":")
    moved = ModuleType("moved_elsewhere")
    moved.other_name = getattr(sys.modules[module], name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moved_elsewhere", moved)
    there = dataclasses.replace(attack, stages=(dataclasses.replace(stage, function="moved_elsewhere:other_name"),))
    assert make_cell(6, attack=attack).fingerprint == make_cell(6, attack=there).fingerprint


def test_no_identity_has_an_import_path(make_cell: Callable[..., Cell]) -> None:
    for name in ATTACKS.table:
        assert "robustbench_vlm" not in canonical(make_cell(2, attack=load_attack(name)).identity), name


def test_a_new_version_of_an_algorithm_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import robustbench_vlm.engine.resolve as module

    settings: dict[str, Any] = {"datasets": ["day-night"], "samples": 4, "out": tmp_path, "workers": 1}
    first = evaluate("clip", "fgsm", **settings)
    assert evaluate("clip", "fgsm", **settings).to_pandas().fingerprint.tolist() == (
        first.to_pandas().fingerprint.tolist()
    )
    files = set(tmp_path.rglob("*.parquet"))

    def raised(name: str) -> Attack:
        attack = load_attack(name)
        return dataclasses.replace(
            attack, stages=tuple(dataclasses.replace(stage, version=stage.version + 1) for stage in attack.stages)
        )

    monkeypatch.setattr(module, "load_attack", raised)
    second = evaluate("clip", "fgsm", **settings)
    assert second.to_pandas().fingerprint.tolist() != first.to_pandas().fingerprint.tolist()
    assert len(files) == 1 and len(set(tmp_path.rglob("*.parquet")) - files) == 1


def test_the_version_of_a_defense_is_in_the_training_identity() -> None:
    from robustbench_vlm.training.request import TrainingRequest, make_job

    job = make_job(TrainingRequest("agft", "mini", num_images=128))
    newer = dataclasses.replace(job, defense=dataclasses.replace(AGFT, version=2))
    older = dataclasses.replace(job, defense=AGFT)
    assert older.account["defense_version"] == 1 and older.identity != newer.identity
