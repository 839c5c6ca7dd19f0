"""Parts of the site: file names, links, numbers, BibTeX, chart positions and protocols."""

import importlib.metadata
import itertools
import re
import socket
from collections.abc import Sequence
from email.message import Message
from pathlib import Path

import made_up_boards as made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_vlm import __version__
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.leaderboard.board import Board, BoardRow
from robustbench_vlm.leaderboard.site import charts, serve, site_files, texts
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import find_card
from robustbench_vlm.models.papers import PAPERS, Paper
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.describe import read_protocol


@given(st.lists(st.text(min_size=1, max_size=70), min_size=2, unique=True))
def test_different_names_become_different_file_names_on_any_file_system(names: list[str]) -> None:
    slugs = [texts.slug(name) for name in names]
    assert len({slug.lower() for slug in slugs}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._+-]*|_[a-z0-9._+-]*|\+[a-z0-9._+-]*", slug) for slug in slugs)


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " https://example.org",
        "http://example.org",
        "//example.org",
        "https://",
        "https://[broken",
        "https://user:word@example.org/",
        'https://example.org/"onmouseover=alert(1)',
        "https://example.org/\u202egnp",
        "https://exаmple.org/",  # noqa: RUF001
        "data:text/html,x",
        "hf:OWNER/NAME/FILE",
    ],
)
def test_only_plain_https_is_linked(address: str) -> None:
    assert texts.safe_link(address) == ""
    assert texts.safe_link("https://arxiv.org/abs/2212.07016v3?x=1#a") == "https://arxiv.org/abs/2212.07016v3?x=1#a"


def test_bibtex_has_only_the_facts_of_the_address() -> None:
    assert "eprint = {2212.07016}" in texts.paper_bibtex("https://arxiv.org/abs/2212.07016")
    assert "doi = {10.1145/3690624.3709296}" in texts.paper_bibtex("https://doi.org/10.1145/3690624.3709296")
    assert texts.paper_bibtex("javascript:alert(1)") == ""
    escaped = texts.bibtex("misc", "a}b", {"title": "}} \\input{/etc/passwd} % $x$"}.items())
    assert escaped == "@misc{ab,\n  title = { input/etc/passwd  x},\n}"


def test_a_bibtex_entry_has_the_authors_title_and_venue_of_the_card() -> None:
    paper = Paper("Gaps & 100 % of {CLIP}: a \\title", ("Ada Lovelace", "Grace Hopper"), "ICML", 2024)
    assert texts.paper_bibtex("https://doi.org/10.1145/1.2", paper).splitlines() == [
        "@inproceedings{lovelace2024gaps,",
        "  title = {Gaps and 100  of CLIP: a title},",
        "  author = {Ada Lovelace and Grace Hopper},",
        "  year = {2024},",
        "  booktitle = {ICML},",
        "  url = {https://doi.org/10.1145/1.2},",
        "  doi = {10.1145/1.2},",
        "}",
    ]
    assert texts.paper_bibtex(
        "https://arxiv.org/abs/2407.14971", PAPERS["https://arxiv.org/abs/2407.14971"]
    ).startswith("@misc{hossain2024simclip,")
    assert texts.paper_bibtex("javascript:alert(1)", paper) == ""


def test_readme_and_site_have_the_same_bibtex_entry_of_the_benchmark() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert texts.benchmark_bibtex(__version__) in readme


def test_the_home_page_links_the_addresses_of_the_project() -> None:
    lines = [
        "Documentation, https://docs.example.org/vlm",
        "Bad, javascript:alert(1)",
        "Repository,https://example.org/r",
    ]
    assert texts.project_links(lines) == {
        "Documentation": "https://docs.example.org/vlm",
        "Repository": "https://example.org/r",
    }
    home = site_files([made.board(), made.unmeasured_board()])["index.html"]
    assert 'href="#submit"' in home and 'id="submit"' in home
    assert "vlmbench submit runs/mini/my_model --model my_model.json" in home
    assert 'href="zeroshot15/index.html#reported">300 numbers that papers report</a>' in home


def test_the_home_page_links_the_repository_as_soon_as_the_package_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = Message()
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)
    boards = [made.board()]
    assert 'rel="noopener' not in site_files(boards)["index.html"].partition("<section")[0]
    metadata["Project-URL"] = "Repository, https://example.org/team/benchmark"
    metadata["Project-URL"] = "Documentation, https://docs.example.org"
    head = site_files(boards)["index.html"].partition("<section")[0]
    links = re.findall(r'href="(https://[^"]*)"[^>]*><bdi>([^<]*)</bdi>', head)
    assert links == [
        ("https://example.org/team/benchmark", "Repository"),
        ("https://docs.example.org", "Documentation"),
    ]


def test_a_served_site_has_an_address_before_it_is_built_and_ends_quietly_on_ctrl_c(tmp_path: Path) -> None:
    seen: list[str] = []

    def build() -> None:
        port = int(seen[0].rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        seen.append("built")
        raise KeyboardInterrupt

    serve(tmp_path, 0, build, seen.append)
    assert seen[0].startswith("http://127.0.0.1:") and seen[1:] == ["built"]


def test_no_page_shows_a_linf_distance_as_a_decimal_number() -> None:
    boards, entries = [made.board()], {("mini", name): made.entry(name) for name in made.NUMBERS}
    found = site_files(boards, entries=entries)
    assert sum(text.count("<td>Linf&nbsp;") for text in found.values()) == 2
    texts_of_pages = [re.sub(r"&nbsp;", " ", text) for name, text in found.items() if name.endswith(".html")]
    assert [each for text in texts_of_pages for each in re.findall(r"Linf [0-9.]+(?![0-9.]*/255)", text)] == []


def test_every_bundled_card_whose_paper_is_known_has_a_venue_and_a_year() -> None:
    cards = [find_card(name, track) for track in ("mini", "zeroshot15") for name in card_names(track)]
    unknown = {card.paper for card in cards if card.paper and card.paper not in PAPERS}
    # The authors of one paper are not in a source that was read, and one model has no paper.
    assert unknown == {"https://arxiv.org/abs/2602.12461", "https://github.com/tianzhehua309-design/SART_CLIP"}
    assert set(PAPERS) <= {card.paper for card in cards}


@st.composite
def crowded(draw: st.DrawFn) -> Board:
    def accuracy() -> Accuracy:
        low, value, high = sorted(draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
        return Accuracy(value, low, high, 100)

    rows: list[BoardRow] = []
    for number in range(draw(st.integers(0, 20))):
        name = "m" * draw(st.integers(1, 30))
        like = made.row("clip", number % 8)
        curve = tuple(made.dataclasses.replace(point, robust=accuracy()) for point in like.curve)
        rows.append(made.dataclasses.replace(like, model=name, clean=accuracy(), robust=accuracy(), curve=curve))
    return made.dataclasses.replace(made.board(), rows=tuple(rows))


@given(crowded())
@settings(deadline=None, max_examples=40)
def test_points_are_in_the_frame_and_labels_do_not_overlap(board: Board) -> None:
    scatter, curves = charts.scatter(board.rows), charts.curves(board)
    assert len(scatter.marks) == len(curves.curves) == len(board.rows)
    for mark in scatter.marks:
        assert charts.LEFT <= mark.left <= mark.x <= mark.right <= charts.RIGHT
        assert charts.TOP <= mark.top <= mark.y <= mark.bottom <= charts.BOTTOM
    boxes = [mark.label.box for mark in scatter.marks if mark.label]
    assert not any(_meet(one, two) for place, one in enumerate(boxes) for two in boxes[:place])
    heights = sorted(curve.label.y for curve in curves.curves if curve.label)
    assert len(heights) == min(len(board.rows), charts.COLOURS)
    assert all(upper + 14 <= lower for upper, lower in itertools.pairwise(heights))
    assert not heights or (heights[0] >= charts.TOP - 1 and heights[-1] <= charts.BOTTOM)


def test_only_a_line_between_radii_with_different_attacks_is_dashed() -> None:
    row = made.row("clip", 0)
    attacks = (("pgd-20",), ("autoattack", "pgd-20"), ("autoattack", "pgd-20"))
    mixed = tuple(
        made.dataclasses.replace(point, attacks=names) for point, names in zip(row.curve, attacks, strict=True)
    )
    board = made.dataclasses.replace(made.board(), rows=(made.dataclasses.replace(row, curve=mixed),))
    (same,) = charts.curves(made.dataclasses.replace(board, rows=(row,))).curves
    (curve,) = charts.curves(board).curves
    assert [line.is_dashed for line in same.lines] == [False]
    assert [line.is_dashed for line in curve.lines] == [False, True, False]
    points = [line.points.split() for line in curve.lines]
    assert (
        [len(each) for each in points] == [2, 2, 2] and points[0][-1] == points[1][0] and points[1][-1] == points[2][0]
    )
    page = site_files([board])["mini/index.html"]
    assert page.count("dashed") - site_files([made.board()])["mini/index.html"].count("dashed") == 1
    assert '<small class="attacks"><bdi>pgd-20</bdi></small>' in page


def _meet(one: Sequence[float], two: Sequence[float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_a_protocol_is_read_back_from_its_identity(name: str) -> None:
    identity = PROTOCOLS.load(name).identity
    assert read_protocol(identity).identity == identity
    for other in ({**identity, "else": 1}, {**identity, "logits": "float32"}, {"name": name}):
        with pytest.raises(UserError, match=r"the recorded protocol .* use the version that wrote it"):
            read_protocol(other)
