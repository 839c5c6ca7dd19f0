"""Forged entries: the check of a submission refuses each, and the board leaves each out and keeps the other entries."""

import re
import shutil
from pathlib import Path

import pytest
from forgeries import DOWNGRADES, FORGERIES, Forgery, write_valid_entry

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.leaderboard.entry import read_entry
from robustbench_vlm.leaderboard.ranking import make_board


@pytest.fixture(scope="session")
def _valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("valid") / "mini"
    for model in ("forged", "honest"):
        write_valid_entry(folder, model)
    return folder


@pytest.fixture
def folder(_valid: Path, tmp_path: Path) -> Path:
    """Return a folder with two valid entries, "forged" and "honest"."""
    return Path(shutil.copytree(_valid, tmp_path / "mini"))


def _check(folder: Path, earlier: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Check the entry "forged" as a submission that changes the entry in the folder `earlier`."""
    code = run_command(["verify", str(folder / "forged.json"), "--check", "--since", str(earlier / "forged.json")])
    printed = capsys.readouterr()
    return code, " ".join(f"{printed.out} {printed.err}".split())


def test_the_valid_entries_pass(folder: Path, _valid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, message = _check(folder, _valid, capsys)
    assert code == 0 and "the digests, history, ids and numbers of 104 records agree" in message
    board = make_board("mini", folder)
    assert sorted(row.model for row in board.rows) == ["forged", "honest"] and not board.refused


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_a_forged_entry_is_refused(
    forgery: Forgery, folder: Path, _valid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgery.forge(folder / "forged.json")
    code, message = _check(folder, _valid, capsys)
    assert code in (1, 2) and re.search(forgery.message, message) and len(message) < 1000
    board = make_board("mini", folder)
    if forgery.is_on_board:
        assert sorted(row.model for row in board.rows) == ["forged", "honest"]
    else:
        assert [row.model for row in board.rows] == ["honest"]
        assert re.search(forgery.message, board.refused["forged"])


@pytest.mark.parametrize("change", DOWNGRADES, ids=lambda forgery: forgery.name)
def test_a_status_does_not_survive_a_change_of_results(change: Forgery, folder: Path) -> None:
    path = folder / "forged.json"
    assert read_entry(path).status == "reproduced"
    change.forge(path)
    assert read_entry(path).status == change.message
    rows = {row.model: row.status for row in make_board("mini", folder).rows}
    assert rows == {"forged": change.message, "honest": "reproduced"}
