"""Values of another package: it is installed with pip, found by its entry points, and used like built-in values."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.classifier_interface import as_classifier
from robustbench_vlm.engine.cost import attack_passes
from robustbench_vlm.protocols.mini import MINI

PACKAGE = Path(__file__).parent / "plugin_package"
UNIFORM = as_classifier(lambda images: images.new_zeros(len(images), 2))
VALUES = {
    "datasets": "stripes",
    "attacks": "noise",
    "architectures": "narrow",
    "models": "sample-clip",
    "defenses": "pull",
    "test-time-defenses": "mirror",
    "protocols": "few",
    "tracks": "sample",
}


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    """Install the sample package into a separate folder and write the weights of its model there."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, PACKAGE], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        from sample_plugin.architectures import NARROW

        write_model(target / "sample_plugin", "sample-clip", NARROW.build(), "narrow")
    return target


@pytest.fixture
def vlmbench(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, object]]]:
    """Return a function that runs a command with --json and the plugin, and returns exit code and document."""
    monkeypatch.syspath_prepend(plugin)

    def run(*arguments: str) -> tuple[int, dict[str, object]]:
        code = run_command([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


Vlmbench = Callable[..., tuple[int, dict[str, object]]]


@pytest.mark.parametrize("kind", VALUES)
def test_plugins_can_add_every_kind(vlmbench: Vlmbench, kind: str) -> None:
    code, found = vlmbench("list", kind)
    (entry,) = [entry for entry in found["entries"] if entry["name"] == VALUES[kind]]
    assert code == 0 and entry["summary"] and not entry["error"]
    code, found = vlmbench("show", kind, VALUES[kind])
    assert code == 0 and found["kind"] == kind.removesuffix("s")


@pytest.mark.parametrize("kind", ["datasets", "attacks", "models", "tracks"])
def test_values_of_the_plugin_fulfil_the_contracts(vlmbench: Vlmbench, kind: str) -> None:
    code, found = vlmbench("check", kind, VALUES[kind], "--track", "sample")
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    # Random noise may fail to break a sample.
    assert all("breaks a linear classifier" in name for name in failed)
    assert code == (1 if failed else 0)


def test_a_run_with_values_of_the_plugin_only(plugin: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "robustbench_vlm", "run", "--track", "sample", "--attack", "noise", "--json"]
    answer = subprocess.run([*command, "--workers", "1"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["track"], found["protocol"], found["model"]) == ("sample", "few/1", "sample-clip")
    assert [(score["dataset"], score["eps"], score["n"]) for score in found["scores"]] == [("stripes", "1/2", 6)]


def test_properties_of_a_stage_are_not_derived_from_its_parameters(
    plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugin)
    noise, steps = load_attack("noise"), load_attack("signed-steps")
    assert noise.stages[0].is_black_box and attack_passes(noise, 2, UNIFORM) == (4 + 1 + 1, 1)
    (stage,) = steps.stages
    assert "queries" in stage.parameters and not stage.is_black_box
    assert attack_passes(steps, 2, UNIFORM) == (4 + 1 + 3 + 1, 1 + 3)
    assert "iterate" in stage.parameters and not stage.chooses_iterate
    assert MINI.iterate == "best" and MINI.adapt_attack(steps) == steps
    assert noise.strength is None and steps.strength is None


def test_a_broken_plugin_fails_only_if_it_is_used(vlmbench: Vlmbench) -> None:
    code, found = vlmbench("list", "attacks")
    errors = {entry["name"]: entry["error"] for entry in found["entries"] if entry["error"]}
    assert code == 0 and list(errors) == ["broken"]
    code, found = vlmbench("show", "attack", "broken")
    assert code == 2 and "sample_plugin.broken:ATTACK" in found["error"]
    assert "RuntimeError: this plugin is for another version; update or uninstall" in found["error"]
    assert vlmbench("show", "attack", "fgsm")[0] == 0


def test_the_error_for_two_providers_of_a_name_names_both(vlmbench: Vlmbench) -> None:
    code, found = vlmbench("show", "dataset", "shapes")
    assert code == 2
    assert "robustbench_vlm.datasets.mini:SHAPES and sample_plugin.datasets:STRIPES" in found["error"]
    assert vlmbench("show", "dataset", "colours")[0] == 0
