"""Summaries of entries: the cache changes no board, every changed byte is noticed, unchanged entries are not read."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import evidence, write_board_entry

from robustbench_vlm.leaderboard import entry_summary, ranking
from robustbench_vlm.leaderboard.board import Board
from robustbench_vlm.leaderboard.entry import Counterexample, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_summary import pack_verdicts, verdict_matrix
from robustbench_vlm.leaderboard.ranking import make_board, read_entries
from robustbench_vlm.leaderboard.site import site_files
from robustbench_vlm.tracks import MINI

MODELS = ("a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, model in enumerate(MODELS):
        verdicts = [""] * (5 + number) + ["square"] * (6 - number) + ["clean"]
        write_board_entry([evidence(model, verdicts, name) for name in MINI.datasets], tmp_path / "mini")
    return tmp_path / "mini"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the entries whose records are read."""
    found: list[str] = []
    check = ranking.check_entry

    def counted(entry: object, folder: Path) -> object:
        found.append(entry.model)  # type: ignore[attr-defined]
        return check(entry, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(ranking, "check_entry", counted)
    return found


def built(folder: Path) -> Board:
    return make_board("mini", folder, folder.parent / "cache")


@given(st.integers(1, 30), st.data())
def test_packed_verdicts_are_unpacked(n: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4))
    summaries = [_Summary(_Row({"shapes": {"robust": _Count(n)}}), {"shapes": pack_verdicts(row)}) for row in rows]
    assert verdict_matrix(summaries, "shapes").tolist() == rows  # type: ignore[arg-type]
    assert len(pack_verdicts([True] * 2600)) == 2 * 325


@dataclasses.dataclass
class _Count:
    n: int


@dataclasses.dataclass
class _Row:
    datasets: dict[str, dict[str, _Count]]


@dataclasses.dataclass
class _Summary:
    row: _Row
    robust: dict[str, str]


def test_a_board_from_the_cache_equals_a_board_without_it_and_reads_no_records(folder: Path, reads: list[str]) -> None:
    first = built(folder)
    assert sorted(reads) == list(MODELS)
    assert built(folder) == first == make_board("mini", folder)
    assert sorted(reads) == sorted(2 * MODELS)
    shutil.rmtree(folder.parent / "cache")
    assert built(folder) == first


def test_pages_from_stored_summaries_are_equal_byte_by_byte(folder: Path) -> None:
    first, second = site_files([built(folder)]), site_files([built(folder)])
    # The order of keys matters, for example in board.json.
    assert first == second and list(json.loads(first["mini/board.json"])["rows"][0]["datasets"]) == list(MINI.datasets)


def test_only_a_changed_entry_is_read_again(folder: Path, reads: list[str]) -> None:
    built(folder)
    reads.clear()
    path = folder / "b.json"
    write_entry(dataclasses.replace(read_entry(path), note="changed"), path)
    assert next(row for row in built(folder).rows if row.model == "b").note == "changed"
    assert reads == ["b"]


def test_changed_records_are_noticed(folder: Path) -> None:
    built(folder)
    path = folder / "records" / "b.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "b" in built(folder).refused


def test_new_images_of_a_counterexample_are_noticed(folder: Path, reads: list[str]) -> None:
    example = Counterexample("shapes", "0001", "Linf", 0.001, 2, "0" * 64)
    path = folder / "b.json"
    write_entry(dataclasses.replace(read_entry(path), counterexamples=(example,)), path)
    assert built(folder).refused == {}
    reads.clear()
    images = folder / "counterexamples" / f"{'0' * 64}.safetensors"
    images.parent.mkdir()
    images.write_bytes(b"not the images with this digest")
    assert list(built(folder).refused) == ["b"] and reads == ["b"]
    (folder / "counterexamples" / f"{'1' * 64}.safetensors").write_bytes(b"of no entry")
    images.unlink()
    reads.clear()
    assert built(folder).refused == {} and reads == []


def test_other_code_and_a_changed_track_make_new_summaries(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built(folder)
    reads.clear()
    monkeypatch.setattr(entry_summary, "code_digest", lambda: "other")
    built(folder)
    assert sorted(reads) == list(MODELS)
    read_entries(folder, dataclasses.replace(MINI, standard_eps=MINI.standard_eps / 2), folder.parent / "cache")
    assert sorted(reads) == sorted(2 * MODELS)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[" * 100_000])
def test_a_damaged_cache_is_not_used(folder: Path, content: bytes) -> None:
    first = built(folder)
    for path in (folder.parent / "cache").rglob("*.json"):
        key = path.read_bytes().partition(b"\n")[0]
        path.write_bytes(key + b"\n" + content)
    assert built(folder) == first


def test_summaries_of_removed_entries_are_removed(folder: Path) -> None:
    built(folder)
    (folder / "c.json").unlink()
    assert [row.model for row in built(folder).rows] == ["b", "a"]
    assert sorted(path.stem for path in (folder.parent / "cache").rglob("*.json")) == ["a", "b"]


def test_a_summary_has_a_few_kilobytes_and_an_eighth_of_a_byte_per_verdict(folder: Path) -> None:
    summaries = read_entries(folder, MINI).checked
    assert sum(len(digits) for digits in summaries[0].robust.values()) == 13 * 2 * numpy.ceil(12 / 8)
    built(folder)
    assert all(path.stat().st_size < 10_000 for path in (folder.parent / "cache").rglob("*.json"))


def test_a_board_is_read_and_rendered_without_torch_and_scipy(folder: Path) -> None:
    # The import of torch needs a second and 400 MB, more than a board of a thousand entries.
    program = (
        "import sys; from pathlib import Path; from robustbench_vlm.leaderboard.ranking import make_board;"
        "from robustbench_vlm.leaderboard.site import site_files; from robustbench_vlm.leaderboard.views import page;"
        "board = make_board('mini', Path(sys.argv[1])); page([board]); site_files([board]);"
        "print(len(board.rows), [name for name in ('torch', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "3 []\n"
