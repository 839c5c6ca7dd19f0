"""The wheel contains the package, the models and the leaderboards, and runs outside the repository."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_vlm.models import card_names

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this repository."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel without dependencies into a folder."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    return target


@pytest.fixture
def vlmbench(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs the installed package in an empty folder and returns its output."""

    def run(*command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        answer = subprocess.run(
            [sys.executable, "-P", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run


def files_of(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_contains_only_package_models_and_leaderboards(wheel: Path) -> None:
    data = {f"robustbench_vlm/{name}" for folder in ("model_zoo", "leaderboards") for name in files_of(folder)}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of("robustbench_vlm") | data


def test_the_package_runs_outside_the_repository(vlmbench: Callable[..., str], installed: Path) -> None:
    found = vlmbench("-c", "import robustbench_vlm; print(robustbench_vlm.__file__)")
    assert Path(found.strip()).is_relative_to(installed)
    listed = json.loads(vlmbench("-m", "robustbench_vlm", "list", "models", "--json"))
    names = [entry["name"] for entry in listed["entries"]]
    assert [name for name in names if name in card_names("mini")] == card_names("mini")
    assert not [entry for entry in listed["entries"] if entry["error"]]


def test_a_run_outside_the_repository_gives_scores(vlmbench: Callable[..., str], taught_card: Path) -> None:
    model = (card_names("mini") or [str(taught_card)])[0]
    options = ["--model", model, "--attack", "fgsm", "--dataset", "shapes", "--samples", "4", "--workers", "1"]
    found = json.loads(vlmbench("-m", "robustbench_vlm", "run", *options, "--json"))
    assert [(score["dataset"], score["n"]) for score in found["scores"]] == [("shapes", 4)]
