"""Fixtures: a run of a small undefended model, and its leaderboard entry."""

import shutil
from pathlib import Path

import pytest

from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run
from robustbench_vlm.leaderboard.submit import make_submission

DATE = "2026-01-02"


@pytest.fixture(scope="session")
def real_run(taught_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run at two radii. Samples stay robust at the smaller radius."""
    out = tmp_path_factory.mktemp("runs")
    resources = Resources("cpu", workers=1)
    for eps in ("1/255", "3/255"):
        run(
            Request(
                models=(str(taught_card),),
                attacks=("pgd-5",),
                datasets=("colours",),
                protocol="mini",
                eps=(eps,),
                out=out,
                resources=resources,
            )
        )
    return out / "mini" / "taught"


@pytest.fixture(scope="session")
def _entry(real_run: Path, taught_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboards")
    return make_submission(real_run, date=DATE, model=str(taught_card)).write(folder)


@pytest.fixture
def entry_path(_entry: Path, tmp_path: Path) -> Path:
    """Return the path of the run's entry in a temporary folder."""
    shutil.copytree(_entry.parent, tmp_path / "mini")
    return tmp_path / "mini" / _entry.name
