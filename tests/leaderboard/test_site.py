"""The site as files: valid pages, links with targets, no content from other servers, and escaped texts."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import made_up_boards as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.leaderboard.site import open_server, site_files, texts, write_site

_VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """The elements and the visible text of a page. Fails if an element is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, *names: str) -> Iterator[str]:
        yield from (attributes[name] or "" for _, attributes in self.elements for name in names if name in attributes)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    entries = {("mini", model): made.entry(model) for model in made.NUMBERS}
    entries[made.SCRIPT, made.HOSTILE_NAME] = made.hostile_entry()
    return site_files([made.board(), made.hostile_board()], entries=entries)


@pytest.fixture(scope="module")
def pages(files: dict[str, str]) -> dict[str, Page]:
    return {name: Page(text) for name, text in files.items() if name.endswith(".html")}


def test_there_is_a_page_for_every_track_model_and_protocol(files: dict[str, str]) -> None:
    models = {f"mini/models/{model}.html" for model in made.NUMBERS}
    fixed = {"index.html", "mini/index.html", "mini/protocol.html", "reading.html", "mini/board.csv", "mini/board.json"}
    assert models | fixed <= set(files)
    assert all(files[name].startswith("<!DOCTYPE html>") for name in files if name.endswith(".html"))


def test_every_link_inside_the_site_has_an_existing_file_and_anchor(files: dict, pages: dict[str, Page]) -> None:
    checked = 0
    for name, page in pages.items():
        for address in page.values("href"):
            if address.startswith(("https:", "data:")):
                continue
            path, _, anchor = address.partition("#")
            target = os.path.normpath(PurePosixPath(name).parent / path) if path else name
            assert target in files, (name, address)
            assert not anchor or anchor in set(pages[target].values("id")), (name, address)
            checked += 1
    assert checked > 200


def test_ids_are_unique_and_labels_point_to_them(pages: dict[str, Page]) -> None:
    for page in pages.values():
        ids = list(page.values("id"))
        assert len(set(ids)) == len(ids)
        assert set(page.values("aria-labelledby", "data-filters")) <= set(ids)


def test_pages_load_nothing_and_the_policy_allows_only_their_own_style_and_script(files: dict, pages: dict) -> None:
    for name, page in pages.items():
        assert all(each.startswith("data:") for each in page.values("src"))
        assert [attributes["href"] for tag, attributes in page.elements if tag == "link"] == ["data:,"]
        outside = [attributes for tag, attributes in page.elements if "https:" in (attributes.get("href") or "")]
        assert all("noopener" in each["rel"] and "nofollow" in each["rel"] for each in outside)
        assert not any("style" in attributes for _, attributes in page.elements)
        policy = next(each for each in page.values("content") if "default-src" in each)
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
        for kind in ("style", "script"):
            (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", files[name], re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
            assert "url(" not in text and "@import" not in text and "//" not in text.replace("/* ", "")


def test_the_html_table_is_sorted_by_rank_and_has_no_reported_numbers(files: dict) -> None:
    measured, reported = files["mini/index.html"].split('<section class="reported"')
    first_table = measured.split("<tbody>")[1].split("</tbody>")[0]
    assert re.findall(r'href="models/([\w.-]+)\.html"', first_table) == list(made.NUMBERS)
    assert "Paper 1" not in measured and reported.count("<details>") == 3
    assert 'data-filters="measured-rows" hidden' in measured


def test_equal_boards_give_equal_bytes_in_any_process_time_zone_and_folder(tmp_path: Path) -> None:
    program = (
        "import hashlib, made_up_boards as made; from robustbench_vlm.leaderboard.site import site_files;"
        "print(hashlib.sha256(repr(sorted(site_files([made.board()]).items())).encode()).hexdigest())"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    mine = hashlib.sha256(repr(sorted(site_files([made.board()]).items())).encode()).hexdigest()
    assert other.stdout.strip() == mine


def test_markup_in_texts_is_escaped(files: dict[str, str], pages: dict[str, Page]) -> None:
    folder = texts.slug(made.SCRIPT)
    hostile = {name: page for name, page in pages.items() if name.startswith(folder)}
    assert len(hostile) == 8
    for name, page in hostile.items():
        tags = [tag for tag, _ in page.elements]
        assert tags.count("script") == 1 and "img" not in tags
        assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
        assert all(re.match(r"https://|data:,$|[\w.#/+-]*$", address) for address in page.values("href")), name
        assert any("<script>alert(1)</script>" in text for text in page.text)
    for text in files.values():
        assert not [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs")]
        text.encode()


def shape(model: str) -> list[list[str]]:
    """Return the elements of each page of a board with one model."""
    row = made.dataclasses.replace(made.row("clip", 7), model=model, note=model, training=model)
    found = site_files([made.dataclasses.replace(made.board(), rows=(row,), reported=())])
    return [[tag for tag, _ in Page(text).elements] for name, text in sorted(found.items()) if ".html" in name]


PLAIN = shape("plain")


@given(st.text(min_size=1, max_size=80))
@settings(deadline=None, max_examples=8)
def test_a_name_changes_no_element_of_a_page(name: str) -> None:
    assert shape(name) == PLAIN


def test_downloads_have_the_numbers_of_the_board(files: dict[str, str]) -> None:
    board = made.board()
    assert json.loads(files["mini/board.json"]) == json.loads(json.dumps(board.to_json()))
    lines = list(csv.DictReader(io.StringIO(files["mini/board.csv"])))
    assert [(line["model"], float(line["robust"])) for line in lines] == [
        (row.model, row.robust.value) for row in board.rows
    ]
    assert float(lines[1]["under_cw_high"]) == board.rows[1].under["cw"].high
    assert float(lines[2]["clean_digits"]) == board.rows[2].datasets["digits"]["clean"].value
    assert len(list(csv.DictReader(io.StringIO(files["mini/reported.csv"])))) == len(board.reported)
    hostile = csv.reader(io.StringIO(files[f"{texts.slug(made.SCRIPT)}/board.csv"]))
    assert not [cell for line in hostile for cell in line if re.match(r"\s*[=+@]|\s*-(?![\d.])", cell)]


def test_an_empty_board_has_its_pages() -> None:
    empty = made.dataclasses.replace(made.board(), rows=(), reported=())
    assert "No model has been measured" in site_files([empty])["mini/index.html"]


def test_an_example_is_in_its_page_and_must_be_a_png(tmp_path: Path) -> None:
    png, other = tmp_path / "a.png", tmp_path / "b.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n made up")
    other.write_text("<svg onload=alert(1)>")
    found = site_files([made.board()], examples={("mini", "agft"): png})
    sources = {name: list(Page(text).values("src")) for name, text in found.items() if name.endswith(".html")}
    assert {name for name, values in sources.items() if values} == {"mini/models/agft.html"}
    assert base64.b64decode(sources["mini/models/agft.html"][0].partition(",")[2]) == png.read_bytes()
    with pytest.raises(UserError, match="is not a PNG file"):
        site_files([made.board()], examples={("mini", "agft"): other})


def test_a_folder_with_other_pages_is_refused_and_not_changed(tmp_path: Path) -> None:
    write_site([made.board()], tmp_path)
    write_site([made.board()], tmp_path)
    strange = tmp_path / "mini" / "models" / "gone.html"
    strange.write_text("mine")
    with pytest.raises(UserError, match=r"gone\.html, which is not a page of this site"):
        write_site([made.board()], tmp_path)
    assert strange.read_text() == "mine"


def test_the_server_is_on_the_loopback_interface_and_serves_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"lacks the file index\.html"):
        open_server(tmp_path, 0)
    write_site([made.board()], tmp_path)
    with open_server(tmp_path, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match=f"port {port}"):
            open_server(tmp_path, int(port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/mini/board.csv") as answer:
            assert answer.read() == (tmp_path / "mini" / "board.csv").read_bytes()
        for path in ("%00", "mini/%00.csv", "x" * 5000, "%2e%2e/%2e%2e/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10)
        assert "Traceback" not in capsys.readouterr().err
        server.shutdown()
        thread.join()
