"""Sources of a comparison: a name, an entry file and a run folder each find the right records."""

from pathlib import Path

import pytest
from made_up_results import evidence, write_board_entry, write_run

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.store import safe_name
from robustbench_vlm.leaderboard import sources
from robustbench_vlm.leaderboard.sources import read_sources

RIGHT = ["", "square", "clean"]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the package's leaderboards by another folder, and work in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sources, "board_folder", lambda track: tmp_path / "board" / track)
    return tmp_path / "board" / "mini"


def names(references: list[str], **options: str) -> list[str]:
    return [source.name for source in read_sources(references, "mini", runs=Path("runs"), **options)]


def test_a_name_means_the_entry_of_the_board_first_and_then_a_run(board: Path) -> None:
    write_board_entry([evidence("agft", RIGHT)], board)
    write_run([evidence("agft", RIGHT * 2)], Path("runs"))
    write_run([evidence("tecoa", RIGHT)], Path("runs"))
    found = read_sources(["agft", "tecoa"], "mini", runs=Path("runs"))
    assert [source.name for source in found] == ["agft", "tecoa"]
    assert [source.evidence[0].score.n for source in found] == [3, 3]


def test_an_entry_file_and_a_run_folder_may_be_anywhere(board: Path, tmp_path: Path) -> None:
    entry = write_board_entry([evidence("agft", RIGHT)], tmp_path / "elsewhere")
    run = write_run([evidence("tecoa", RIGHT)], tmp_path / "records")
    assert names([str(entry), str(run), str(run.parent / "tecoa" / "autoattack") + "/"]) == [
        "agft",
        f"tecoa ({run})",
        f"tecoa ({run}/autoattack/)",
    ]


def test_other_attacks_of_a_run_are_not_read_if_it_has_the_requested_one(board: Path) -> None:
    write_run([evidence("agft", RIGHT), evidence("agft", RIGHT, attack="cw")], Path("runs"))
    attacks = {
        attack: {
            each.score.attack for each in read_sources(["agft"], "mini", attack=attack, runs=Path("runs"))[0].evidence
        }
        for attack in ("cw", "", "none")
    }
    assert attacks == {"cw": {"cw"}, "": {"autoattack", "cw"}, "none": {"autoattack", "cw"}}


def test_a_folder_without_runs_does_not_hide_the_name(board: Path) -> None:
    write_board_entry([evidence("agft", RIGHT)], board)
    Path("agft").mkdir()
    assert names(["agft"]) == ["agft"]


def test_models_of_one_name_are_distinguished_by_their_references(board: Path) -> None:
    write_board_entry([evidence("agft", RIGHT)], board)
    write_run([evidence("agft", RIGHT)], Path("mine"))
    assert names(["agft", "mine/mini/agft"]) == ["agft (agft)", "agft (mine/mini/agft)"]


@pytest.mark.parametrize("model", ["open_clip:ViT-B-32/openai", "ttc+open_clip:ViT-B-32/openai", "ttc+clip"])
def test_a_run_is_found_by_the_reference_of_its_model(board: Path, model: str) -> None:
    folder = write_run([evidence(model, RIGHT)], Path("runs"))
    assert folder.name == safe_name(model) and folder.parent == Path("runs") / "mini"
    assert names([model]) == [model]
    with pytest.raises(UserError, match="unknown result 'open_clip:RN50/openai'"):
        names(["open_clip:RN50/openai"])


def test_a_disputed_entry_has_a_note(board: Path) -> None:
    write_board_entry([evidence("agft", RIGHT)], board, status="disputed")
    assert "disputed" in read_sources(["agft"], "mini")[0].notes[0]


@pytest.mark.parametrize(
    ("references", "track", "message"),
    [
        (
            ["agtf"],
            "mini",
            r"unknown result 'agtf'. Did you mean agft\? Known: agft, tecoa\. .* leaderboard .* runs/mini",
        ),
        (["agft", "agft"], "mini", "'agft' is given twice"),
        (["no/such/folder"], "mini", "no/such/folder does not contain a finished run"),
        (["../agft"], "mini", "does not contain a finished run"),
        (["missing.json"], "mini", "cannot read the entry missing.json"),
        (["agft"], "nowhere", "unknown track 'nowhere'"),
        (["runs/mini/tecoa"], "zeroshot15", "is of the track 'mini', not 'zeroshot15': give --track mini"),
    ],
)
def test_an_unknown_reference_is_refused(board: Path, references: list[str], track: str, message: str) -> None:
    write_board_entry([evidence("agft", RIGHT)], board)
    write_run([evidence("tecoa", RIGHT)], Path("runs"))
    with pytest.raises(UserError, match=message):
        read_sources(references, track, runs=Path("runs"))
