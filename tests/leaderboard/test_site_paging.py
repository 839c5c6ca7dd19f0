"""Pages of large boards: size, links, rows of each page, compressed rows, and pages that are not made again."""

import base64
import dataclasses
import random
import re
import zlib
from pathlib import Path

import made_up_boards as made
import pytest

from robustbench_vlm.leaderboard.board import Board
from robustbench_vlm.leaderboard.entry import Entry, EntryDataset, write_entry
from robustbench_vlm.leaderboard.site import EntryFiles, pages, site_files, write_site
from robustbench_vlm.leaderboard.site.charts import DETAILED
from robustbench_vlm.leaderboard.site.paging import PAGE_ROWS, packed, page_name, reported_pages

MAX_BYTES = 300_000


@pytest.fixture(scope="module")
def board() -> Board:
    return made.large_board(1000)


@pytest.fixture(scope="module")
def board_pages(board: Board) -> dict[str, str]:
    """Return the pages of the board, without the pages of the models."""
    files = pages._files([board], {}, {})
    return {file.name: file.make() for file in files if file.name.endswith(".html") and "/models/" not in file.name}


def models_in(text: str) -> list[str]:
    return re.findall(r'<th scope="row" data-value="(model-[0-9]+)">', text)


def test_pages_of_a_thousand_models_have_at_most_300_kb(board_pages: dict[str, str]) -> None:
    assert len(board_pages) > 1000 / PAGE_ROWS
    assert {name: len(text.encode()) for name, text in board_pages.items() if len(text.encode()) > MAX_BYTES} == {}


def test_pages_have_all_models_once_and_link_to_each_other(board: Board, board_pages: dict[str, str]) -> None:
    names = [f"mini/{page_name(page)}" for page in range(-(-1000 // PAGE_ROWS))]
    assert [model for name in names for model in models_in(board_pages[name])] == [row.model for row in board.rows]
    for name in names:
        assert set(re.findall(r'href="(page-[0-9]+\.html)"', board_pages[name])) == {
            Path(each).name for each in names[1:]
        }


def test_the_first_page_has_the_rows_of_all_other_pages(board: Board, board_pages: dict[str, str]) -> None:
    data = re.search(r'data-packed="measured-rows">([^<]+)<', board_pages["mini/index.html"])
    assert data is not None
    rest = zlib.decompress(base64.b64decode(data[1]), wbits=-15).decode()
    assert models_in(rest) == [row.model for row in board.rows[PAGE_ROWS:]]
    # The rows of the second page are the same with and without a script.
    second = board_pages["mini/page-2.html"]
    body = second[second.index("<tr data-status") : second.index("</tbody>")].strip()
    assert rest.strip().startswith(body)


def test_rows_that_cannot_be_compressed_stay_on_their_pages() -> None:
    assert packed("".join(chr(33 + number * number * 7919 % 89) for number in range(10**6))) != ""
    noise = random.Random(0).randbytes(150_000).hex()
    assert packed(noise) == ""


def test_charts_of_a_thousand_models_are_bounded(board_pages: dict[str, str]) -> None:
    first = board_pages["mini/index.html"]
    assert first.count("<circle cx") == DETAILED and "h0M" in first
    assert first.count("<polyline") == DETAILED and f"Only the first {DETAILED} models" in first


def test_the_page_of_a_model_shows_the_nearest_models_only(board: Board) -> None:
    file = next(each for each in pages._files([board], {}, {}) if each.name == "mini/models/model-0500.html")
    text = file.make()
    assert text.count("<polyline") == 21 and "model-0490" in text and "model-0489" not in text
    assert "of 1000; clean rank" in text and len(text.encode()) < MAX_BYTES


def test_many_reported_numbers_have_their_own_pages() -> None:
    numbers = made.reported(4, 220)
    files = site_files([dataclasses.replace(made.board(), reported=numbers)])
    own = [name for name in files if name.startswith("mini/reported-")]
    assert len(own) == 4 and all(len(files[name].encode()) < MAX_BYTES for name in own)
    assert "reported-3.html" in files["mini/index.html"] and "<details>" in files[own[0]]
    parts = reported_pages([("one", numbers[:700]), ("two", numbers[700:])])
    assert [number for part in parts for _, each in part for number in each] == list(numbers)


def entry_of(model: str, note: str = "") -> Entry:
    datasets = {"shapes": EntryDataset(("a", "b"), ("a", "b"), made.DIGEST)}
    attacks = {"autoattack": ({"name": "square"},)}
    return dataclasses.replace(made.entry("agft"), model=model, note=note, datasets=datasets, attacks=attacks)


def test_only_changed_pages_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = made.large_board(70)
    paths = {}
    for row in board.rows:
        paths["mini", row.model] = tmp_path / f"{row.model}.json"
        write_entry(entry_of(row.model), paths["mini", row.model])
    made_pages: list[str] = []
    render = pages._page

    def counted(environment: object, template: str, **about: object) -> str:
        made_pages.append(template)
        return render(environment, template, **about)  # type: ignore[arg-type]

    monkeypatch.setattr(pages, "_page", counted)

    def write(board: Board) -> dict[str, int]:
        made_pages.clear()
        write_site([board], tmp_path / "site", entries=EntryFiles(paths), cache=tmp_path / "cache")
        return {name: made_pages.count(name) for name in ("model.html", "board.html")}

    assert write(board) == {"model.html": 70, "board.html": 3}
    assert write(board) == {"model.html": 0, "board.html": 0} and made_pages == []
    # A changed note is on the page of the model only. A changed curve is on the pages of the nearest models too.
    rows = list(board.rows)
    rows[0] = dataclasses.replace(rows[0], note="changed")
    assert write(dataclasses.replace(board, rows=tuple(rows))) == {"model.html": 1, "board.html": 1}
    rows[40] = dataclasses.replace(rows[40], clean=made.accuracy(0.9))
    changed = dataclasses.replace(board, rows=tuple(rows))
    assert write(changed) == {"model.html": 21, "board.html": 2}
    # A page that was edited by hand, and a page of a changed entry, are written again.
    (tmp_path / "site/mini/models/model-0003.html").write_text("edited")
    write_entry(entry_of("model-0005", "x"), paths["mini", "model-0005"])
    assert write(changed) == {"model.html": 2, "board.html": 0}
    # A change of what papers report is on the first page and on the page of the paper.
    changed = dataclasses.replace(changed, reported=made.reported(1, 12))
    assert write(changed) == {"model.html": 0, "board.html": 1}
    assert write(dataclasses.replace(changed, refused={"bad": "damaged"})) == {"model.html": 0, "board.html": 1}
    assert write(changed) == {"model.html": 0, "board.html": 1}
    entries = {key: entry_of(key[1], "x" if key[1] == "model-0005" else "") for key in paths}
    fresh = site_files([changed], entries=entries)
    for name, text in fresh.items():
        assert (tmp_path / "site" / name).read_text() == text
