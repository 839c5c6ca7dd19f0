"""Test that models with test-time defenses run, resume and write records as other models do."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from robustbench_vlm.analysis.diagnose import diagnose
from robustbench_vlm.analysis.doctor import doctor
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.model_cache import loaded_model
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run
from robustbench_vlm.engine.store import cell_folder, read_finished
from robustbench_vlm.models.classifier import load_model
from robustbench_vlm.models.reference import CardFile, ModelReference
from robustbench_vlm.test_time.defended_model import checked_reference

ONE = Resources(device="cpu", workers=1)


def request_of(out: Path, **changes: object) -> Request:
    request = Request(
        models=("ttc+clip",), attacks=("pgd-2",), datasets=("textures",), samples=4, out=out, resources=ONE
    )
    return replace(request, **changes)


def test_a_run_writes_records_and_does_not_compute_them_again(tmp_path: Path) -> None:
    request = request_of(tmp_path)
    result = run(request)
    (table,), (cell,) = result.tables, resolve(request).cells
    assert table.model == "ttc+clip" and table.scores[0].n == 4
    pieces = read_finished(cell_folder(tmp_path, cell), cell).pieces
    rows = [row for piece in pieces for row in piece.results]
    names = {stage.name for stage in cell.attack.stages}
    assert names == {"transfer:pgd-2", "loop:pgd-2", "constant:pgd-2"}
    assert {row.broken_by for row in rows} <= {*names, "clean", ""}
    # A call without a gradient has six forward passes: two for tau, one for the image, two for the steps, and one for
    # the answer.
    assert all(row.forward >= 6 and row.backward >= 2 for row in rows)
    assert not any("unstable-output" in row.warnings or "batch-dependent" in row.warnings for row in rows)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = run(request)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert again.tables[0].scores == table.scores


def test_a_test_time_defense_on_a_card_file_has_its_own_name_and_fingerprint(tmp_path: Path, taught_card: Path) -> None:
    models = (f"clipure-cos+{taught_card}", f"clipure-cos@short+{taught_card}", str(taught_card))
    plan = resolve(request_of(tmp_path, models=models))
    assert [cell.model_name for cell in plan.cells] == ["clipure-cos+taught", "clipure-cos@short+taught", "taught"]
    assert len({cell.fingerprint for cell in plan.cells}) == 3
    plain = plan.cells[2]
    assert plain.weights == load_model(str(taught_card), "mini").digest
    assert plain.attack == plan.protocol.adapt_attack(load_attack("pgd-2"))


def test_the_estimate_includes_the_passes_of_a_test_time_defense(tmp_path: Path) -> None:
    costs = [estimate_cost(resolve(request_of(tmp_path, models=(name,)))).passes_most for name in ("clip", "ttc+clip")]
    assert costs[1] > 6 * costs[0]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tcc+clip", r"unknown test-time-defense 'tcc'\. Did you mean ttc.*'tcc\+clip' was read as DEFENSE\+MODEL"),
        ("ttc+clop", r"unknown model 'clop'\. Did you mean .*clip"),
        ("ttc+ttc+clip", r"'ttc\+ttc\+clip' has two test-time defenses, 'ttc' and 'ttc'.*: give one of them"),
        ("ttc+tcc+clip", r"has two test-time defenses, 'ttc' and 'tcc'"),
        ("no/where+clip.json", r"no/where\+clip\.json"),
    ],
)
def test_an_invalid_reference_with_a_plus_raises_user_error(reference: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(request_of(tmp_path, models=(reference,)))


def test_the_path_of_a_card_may_contain_a_plus(
    tmp_path: Path, taught_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(taught_card.parent, tmp_path / "a+b")
    (tmp_path / "a+b" / taught_card.name).rename(tmp_path / "a+b" / "c+d.json")
    monkeypatch.chdir(tmp_path / "a+b")
    for reference in ("c+d.json", "../a+b/c+d.json", str(tmp_path / "a+b" / "c+d.json")):
        assert checked_reference(reference) == ModelReference(CardFile(reference))
        assert loaded_model(reference, "mini", "cpu").name == "taught"


def test_diagnose_and_doctor_raise_user_error_for_a_test_time_defense(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accepts only models without one: give 'clip'"):
        diagnose(request_of(tmp_path, models=("clipure-cos+clip",), attacks=("fgsm",)))
    with pytest.raises(UserError, match="accepts only models without one: give 'clip'"):
        doctor(model="clipure-cos+clip")


def test_the_undefended_model_is_that_of_the_track_only_if_the_defense_needs_it() -> None:
    ttc, clipure = (loaded_model(f"{name}+agft", "mini", "cpu") for name in ("ttc", "clipure-cos"))
    assert (ttc.model.name, ttc.undefended.name) == ("agft", "clip")  # type: ignore[union-attr]
    assert clipure.undefended is clipure.model  # type: ignore[union-attr]
