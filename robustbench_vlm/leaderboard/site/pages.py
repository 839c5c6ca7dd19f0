"""Render the pages of the site from the boards.

Equal boards give byte-identical pages, because the pages contain no date and no machine name.
"""

import base64
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic_core import PydanticSerializationError, to_json

from robustbench_vlm import __version__
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import paths_inside, sha256_of, write_text
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.text import terminal_text
from robustbench_vlm.core.threat import distance_text
from robustbench_vlm.engine.warnings import WARNINGS, explain
from robustbench_vlm.leaderboard.board import Board, BoardRow, ReportedNumber
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.entry_summary import code_digest
from robustbench_vlm.leaderboard.site import texts
from robustbench_vlm.leaderboard.site.charts import curves, nearest, scatter
from robustbench_vlm.leaderboard.site.downloads import board_csv, board_json, reported_csv
from robustbench_vlm.leaderboard.site.paging import (
    PAGE_ROWS,
    packed,
    page_name,
    papers_by_page,
    reported_pages,
    row_pages,
)
from robustbench_vlm.leaderboard.site.reported_table import reported_table
from robustbench_vlm.leaderboard.site.written_pages import EntryFiles, Key, WrittenPages
from robustbench_vlm.protocols.describe import FIELDS, GROUPS, read_protocol
from robustbench_vlm.tracks import TRACKS

_HERE = Path(__file__).parent
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _File:
    """A file of the site. Its text is made only if it is needed."""

    name: str
    """Path within the folder of the site."""
    make: Callable[[], str]
    basis: Sequence[object] = ()
    """Everything that the text depends on, except the code of the package. It is empty if the text is always made."""


def write_site(
    boards: Sequence[Board],
    folder: Path,
    *,
    entries: Mapping[Key, Entry] | None = None,
    examples: Mapping[Key, Path] | None = None,
    cache: Path | None = None,
) -> None:
    """Write the site of all boards into a folder. Each file is written atomically, one after the other.

    If `entries` has the entry of a model, the model's page also shows the notes of the card, all scores and the
    counterexamples. `examples` are paths of PNG files with clean and adversarial images. The pages show these images.
    If the folder `cache` is given, and `entries` is an `EntryFiles`, pages whose contents have not changed are not made
    again. Raises UserError if the folder contains HTML pages that are not part of the site.
    """
    files = list(_files(boards, entries or {}, examples or {}))
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    if strange := sorted(there - {file.name for file in files}):
        raise UserError(
            f"{folder} has {strange[0]}, which is not a page of this site: remove it, or give an empty folder"
        )
    written = WrittenPages(cache, folder) if cache and isinstance(entries, EntryFiles) else None
    path_of = paths_inside(folder)
    for file in files:
        path = path_of(file.name)
        key = fingerprint([code_digest(), __version__, *file.basis]) if written and file.basis else ""
        if written and key and written.is_current(file.name, path, key):
            continue
        text = file.make()
        if text:
            write_text(path, text)
        if written and key:
            written.add(file.name, key, text)
    if written:
        written.save()


def site_files(
    boards: Sequence[Board],
    *,
    entries: Mapping[Key, Entry] | None = None,
    examples: Mapping[Key, Path] | None = None,
) -> dict[str, str]:
    """Return the text of each file of the site. The keys are paths within the folder.

    The arguments have the same meaning as in `write_site`.
    """
    made = ((file.name, file.make()) for file in _files(boards, entries or {}, examples or {}))
    return {name: text for name, text in made if text}


def _files(boards: Sequence[Board], entries: Mapping[Key, Entry], examples: Mapping[Key, Path]) -> Iterator[_File]:
    """Yield all files of the site. Files without text are not part of the site."""
    environment = _environment(boards)
    tracks = [board.track for board in boards]
    rows = {board.track: [_digest(row) for row in board.rows] for board in boards}
    frames = {board.track: [fingerprint([tracks, _without_rows(board), len(board.rows)])] for board in boards}
    home = {"root": "", "here": ""}
    everything = [frames, rows, [len(board.reported) for board in boards], texts.project_links()]
    yield _File("index.html", partial(_page, environment, "index.html", **home), everything)
    reading = {"root": "", "here": "/reading", "warnings": WARNINGS.values()}
    yield _File("reading.html", partial(_page, environment, "reading.html", **reading), tracks)
    for board in boards:
        folder = texts.slug(board.track)
        digests, frame = rows[board.track], frames[board.track]
        for file in _board_files(environment, board, frame, digests):
            yield dataclasses.replace(file, name=f"{folder}/{file.name}")
        lines = [_digest((row.model, row.clean, row.curve)) for row in board.rows]
        for place, (row, digest) in enumerate(zip(board.rows, digests, strict=True)):
            key = (board.track, row.model)
            make = partial(_model_page, environment, board, row, entries, examples.get(key))
            own = [entries.digest(key)] if isinstance(entries, EntryFiles) else []
            example = [sha256_of(examples[key])] if key in examples else []
            basis = [*frame, digest, lines[nearest(place)], own, example]
            yield _File(f"{folder}/models/{texts.slug(row.model)}.html", make, basis)


def _digest(value: object) -> str:
    """Return a digest of a row of a board, or of a part of it. `fingerprint` needs much more time for many rows."""
    try:
        return hashlib.sha256(to_json(value)).hexdigest()
    except PydanticSerializationError:
        # A text has a lone surrogate, which is not valid in UTF-8.
        return fingerprint(value)


def _without_rows(board: Board) -> Board:
    """Return a board without its models and reported numbers, for pages that do not show them."""
    return dataclasses.replace(board, rows=(), reported=(), absent={}, refused={})


def _board_files(
    environment: Environment, board: Board, frame: Sequence[object], digests: Sequence[str]
) -> Iterator[_File]:
    """Yield the pages and downloads of a board. `digests` are those of its rows."""
    shared = {"root": "../", "here": board.track, "board": board}
    attacks = list(dict.fromkeys(name for row in board.rows for name in row.under))
    # Warnings of every model are below the table, so that the table has only the differences.
    several = board.rows if board.rows[1:] else ()
    common = [each for each in several[0].warnings if all(each in row.warnings for row in several)] if several else []
    reported = reported_pages(_papers(board.reported))
    pages = row_pages(board.rows)
    numbers = _digest(board.reported)
    # Numbers of papers are on the page of the board if they fit on it.
    inline = len(pages) == len(reported) == 1
    for page, rows in enumerate(pages):
        start = page * PAGE_ROWS
        about = {
            "attacks": attacks,
            "common": common,
            "reported": reported,
            "reported_papers": papers_by_page(reported),
            "page": page,
            "pages": len(pages),
            "rows": rows,
            "has_reported_numbers": inline,
        }
        make = partial(_board_page, environment, board, {**shared, **about, "start": start})
        shown_rows = (
            digests[start : start + PAGE_ROWS]
            if page
            else [digests, numbers, plain(board.absent), plain(board.refused)]
        )
        basis = [*frame, attacks, common, page, shown_rows]
        yield _File(page_name(page), make, basis)
    if board.reported and not inline:
        for number, papers in enumerate(reported, start=1):
            make = partial(_page, environment, "reported.html", **shared, papers=papers)
            yield _File(f"reported-{number}.html", make, [*frame, _digest(papers)])
    yield _File("protocol.html", partial(_protocol_page, environment, board, shared), frame)
    yield _File("board.csv", partial(board_csv, board), [*frame, digests])
    yield _File("board.json", partial(board_json, board), [*frame, digests, numbers])
    yield _File("reported.csv", partial(reported_csv, board), [board.track, numbers])


def _protocol_page(environment: Environment, board: Board, about: Mapping[str, Any]) -> str:
    return _page(environment, "protocol.html", **about, **_about_protocol(board))


def _board_page(environment: Environment, board: Board, about: Mapping[str, Any]) -> str:
    """Return a page of a board. The first page has the charts, and the rows of all other pages in compressed form."""
    more: dict[str, Any] = {"scatter": None, "curves": None, "packed_rows": "", "page_rows": PAGE_ROWS}
    more["papers"] = about["reported"][0]
    if about["page"] == 0:
        more |= {"scatter": scatter(board.rows), "curves": curves(board), "table": reported_table(board)}
        if board.rows[PAGE_ROWS:]:
            rest = {**about, "rows": board.rows[PAGE_ROWS:], "start": PAGE_ROWS}
            more["packed_rows"] = packed(_page(environment, "board_rows.html", **rest))
    return _page(environment, "board.html", **about, **more)


def _model_page(
    environment: Environment, board: Board, row: BoardRow, entries: Mapping[Key, Entry], example: Path | None
) -> str:
    about = _about_model(board, row, entries.get((board.track, row.model)), example)
    slim = _without_rows(board)
    return _page(environment, "model.html", root="../../", here=board.track, board=slim, row=row, **about)


def _about_model(board: Board, row: BoardRow, entry: Entry | None, example: Path | None) -> dict[str, Any]:
    path = f"leaderboards/{board.track}/{row.model}.json"
    return {
        "entry": entry,
        "example": _data_address(example) if example else "",
        "curves": curves(board, row.model),
        "models": len(board.rows),
        "explained": [(warning, explain(warning)) for warning in row.warnings],
        "verify": f"vlmbench verify {shlex.quote(path)}",
        "paper_bibtex": texts.paper_bibtex(row.paper, row.citation),
    }


def _about_protocol(board: Board) -> dict[str, Any]:
    identity = board.protocol["identity"]
    try:
        protocol = read_protocol(identity)
        words = [(GROUPS.get(name, "Data"), what, say(protocol)) for name, (what, say) in FIELDS.items()]
    except UserError:
        # The protocol was written by another version of the package, so only its JSON identity can be shown.
        words = []
    return {"words": words, "identity": json.dumps(identity, indent=1), "digest": fingerprint(identity)}


def _papers(reported: Sequence[ReportedNumber]) -> list[tuple[str, list[ReportedNumber]]]:
    """Return the reported numbers of each paper, in the order in which the papers first appear."""
    found: dict[str, list[ReportedNumber]] = {}
    for number in reported:
        found.setdefault(number.paper, []).append(number)
    return list(found.items())


def _data_address(path: Path) -> str:
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise UserError(f"the example {path} is not a PNG file: make one by `vlmbench show sample --out FILE.png`")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _page(environment: Environment, template: str, **about: Any) -> str:
    return environment.get_template(template).render(**about)


def _environment(boards: Sequence[Board]) -> Environment:
    """Return the jinja2 environment.

    It has the values that all pages use: boards, style, script and security policy.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: terminal_text(value, keep_newlines=True) if type(value) is str else value,
    )
    filters = (
        *(texts.shown, texts.slug, texts.safe_link, texts.percent, texts.interval, texts.signed, texts.count),
        *(texts.warning_parts, texts.radius, distance_text, texts.joined, page_name),
    )
    environment.filters |= {each.__name__: each for each in filters}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    environment.globals |= {
        "boards": boards,
        "version": __version__,
        "titles": {name: TRACKS.load(name).title for name in TRACKS.names()},
        "known_warnings": frozenset(WARNINGS),
        "benchmark_bibtex": texts.benchmark_bibtex(__version__),
        "project_links": texts.project_links(),
        "style": style,
        "script": script,
        # This content security policy allows only this style and this script. The policy contains their digests,
        # because 'self' does not work for pages that are opened as files.
        "policy": "; ".join(
            (
                "default-src 'none'",
                f"style-src '{_source(style)}'",
                f"script-src '{_source(script)}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
    }
    return environment


def _source(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
