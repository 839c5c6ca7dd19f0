"""Markdown tables: generated from the entries, compared with the files, and without markup from submissions."""

from pathlib import Path

import made_up_boards as made
import pytest
from made_up_results import evidence, write_board_entry
from PIL import Image

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.text import markdown_text
from robustbench_vlm.leaderboard.ranking import make_board
from robustbench_vlm.leaderboard.views import BEGIN, END, markdown, with_tables
from robustbench_vlm.tracks import MINI

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>|`x`[a](javascript:b)\n# *head*"


def _fill(folder: Path, training: str = "scenes") -> Path:
    found = [evidence("made-up", ["", "square"], dataset) for dataset in MINI.datasets]
    card = {"name": "made-up", "architecture": "mini", "training": {"dataset": training, "eps": "6/255"}}
    write_board_entry(found, folder / "mini", card=card)
    return folder


def test_the_tables_of_this_repository_agree_with_its_entries() -> None:
    assert run_command(["leaderboard", "check", "--folder", str(ROOT / "leaderboards")]) == 0


def test_text_of_submissions_is_escaped(tmp_path: Path) -> None:
    table = markdown(make_board("mini", _fill(tmp_path, HOSTILE) / "mini"))
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 3
    bare = rows[2].replace("\\\\", "").replace("\\|", "").replace("\\<", "").replace("\\`", "").replace("\\[", "")
    assert bare.count("|") == rows[0].count("|") and not set("<`[") & set(bare)
    assert "\\<script\\>" in rows[2] and "eps 6/255" in rows[2]


@pytest.mark.parametrize("hostile", ["a|b", "a\nb", "\x1b[31m", "‮", "`", "**", "<b>"])
def test_no_text_adds_a_line_to_a_table(hostile: str) -> None:
    shown = markdown_text(hostile)
    assert shown.isprintable() and "\n" not in shown
    assert all(f"\\{char}" in shown for char in hostile if char in "|`*<")


def test_tables_between_markers_are_replaced(tmp_path: Path) -> None:
    board = make_board("mini", _fill(tmp_path) / "mini")
    begin = BEGIN.format("mini")
    document = f"before\n{begin}\nold\n{END}\nafter\n"
    made = with_tables(document, [board])
    assert made == f"before\n{begin}\n{markdown(board)}{END}\nafter\n" and with_tables(made, [board]) == made
    assert with_tables("no marker\n", [board]) == "no marker\n"
    with pytest.raises(UserError, match="has no"):
        with_tables(f"{begin}\nold\n", [board])


def test_the_readme_shows_the_first_models_of_a_large_board_and_links_to_all() -> None:
    board = made.board()
    large = made.dataclasses.replace(board, rows=board.rows * 10)
    begin = BEGIN.format("mini")
    shown = with_tables(f"{begin}\n{END}\n", [large])
    assert shown.count("\n| ") == 50 + 2 and "[All 80 models](leaderboards/README.md)." in shown
    assert markdown(large).count("\n| ") == 80 + 2 and "All 8" not in with_tables(f"{begin}\n{END}\n", [board])


def test_check_reports_differing_tables_until_build_replaces_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _fill(tmp_path / "leaderboards")
    (tmp_path / "README.md").write_text(f"# Mine\n{BEGIN.format('mini')}\n{END}\n", encoding="utf-8")
    png = folder / "mini" / "examples" / "made-up.png"
    png.parent.mkdir()
    Image.new("RGB", (2, 2)).save(png)
    arguments = ["--folder", str(folder)]
    assert run_command(["leaderboard", "check", *arguments]) == 1
    assert capsys.readouterr().out.count("differs from the entries") == 2
    assert run_command(["leaderboard", "build", *arguments, "--site", str(tmp_path / "site")]) == 0
    assert (tmp_path / "site" / "index.html").is_file() and "made-up" in (tmp_path / "README.md").read_text("utf-8")
    assert "data:image/png;base64," in (tmp_path / "site" / "mini" / "models" / "made-up.html").read_text("utf-8")
    assert run_command(["leaderboard", "check", *arguments]) == 0
    (folder / "README.md").write_text("edited by hand", encoding="utf-8")
    assert run_command(["leaderboard", "check", *arguments]) == 1
    assert run_command(["leaderboard", "check", "--folder", str(tmp_path / "absent")]) == 2
