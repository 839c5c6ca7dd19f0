"""Render the pages of the site from the boards.

Equal boards give byte-identical pages, because the pages contain no date and no machine name.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from robustbench_vlm import __version__
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import inside, write_text
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.text import terminal_text
from robustbench_vlm.engine.warnings import WARNINGS, explain
from robustbench_vlm.leaderboard.board import Board, BoardRow, ReportedNumber
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.site import texts
from robustbench_vlm.leaderboard.site.charts import curves, scatter
from robustbench_vlm.leaderboard.site.downloads import board_csv, board_json, reported_csv
from robustbench_vlm.protocols.describe import FIELDS, read_protocol

_HERE = Path(__file__).parent
_PNG = b"\x89PNG\r\n\x1a\n"
Key = tuple[str, str]
"""Track and model."""


def write_site(
    boards: Sequence[Board],
    folder: Path,
    *,
    entries: Mapping[Key, Entry] | None = None,
    examples: Mapping[Key, Path] | None = None,
) -> None:
    """Write the site of all boards into a folder. Each file is written atomically.

    If `entries` has the entry of a model, the model's page also shows the notes of the card, all scores and the
    counterexamples. `examples` are paths of PNG files with clean and adversarial images. The pages show these images.
    Raises UserError if the folder contains HTML pages that are not part of the site.
    """
    files = site_files(boards, entries=entries, examples=examples)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    if strange := sorted(there - set(files)):
        raise UserError(
            f"{folder} has {strange[0]}, which is not a page of this site: remove it, or give an empty folder"
        )
    for name, text in files.items():
        write_text(inside(folder, name), text)


def site_files(
    boards: Sequence[Board],
    *,
    entries: Mapping[Key, Entry] | None = None,
    examples: Mapping[Key, Path] | None = None,
) -> dict[str, str]:
    """Return the text of each file of the site. The keys are paths within the folder.

    The arguments have the same meaning as in `write_site`.
    """
    environment = _environment(boards)
    files = {
        "index.html": _page(environment, "index.html", root="", here=""),
        "reading.html": _page(environment, "reading.html", root="", here="/reading", warnings=WARNINGS.values()),
    }
    for board in boards:
        folder = texts.slug(board.track)
        for name, text in _board_files(environment, board).items():
            files[f"{folder}/{name}"] = text
        for row in board.rows:
            key = (board.track, row.model)
            about = _about_model(board, row, (entries or {}).get(key), (examples or {}).get(key))
            page = _page(environment, "model.html", root="../../", here=board.track, board=board, row=row, **about)
            files[f"{folder}/models/{texts.slug(row.model)}.html"] = page
    return files


def _board_files(environment: Environment, board: Board) -> dict[str, str]:
    shared = {"root": "../", "here": board.track, "board": board}
    tables = {
        "attacks": list(dict.fromkeys(name for row in board.rows for name in row.under)),
        "papers": _papers(board.reported),
        "scatter": scatter(board.rows),
        "curves": curves(board),
    }
    files = {
        "index.html": _page(environment, "board.html", **shared, **tables),
        "protocol.html": _page(environment, "protocol.html", **shared, **_about_protocol(board)),
        "board.csv": board_csv(board),
        "board.json": board_json(board),
        "reported.csv": reported_csv(board),
    }
    return {name: text for name, text in files.items() if text}


def _about_model(board: Board, row: BoardRow, entry: Entry | None, example: Path | None) -> dict[str, Any]:
    path = f"leaderboards/{board.track}/{row.model}.json"
    return {
        "entry": entry,
        "example": _data_address(example) if example else "",
        "curves": curves(board, row.model),
        "explained": [(warning, explain(warning)) for warning in row.warnings],
        "verify": f"vlmbench verify {shlex.quote(path)}",
        "paper_bibtex": texts.paper_bibtex(row.paper),
    }


def _about_protocol(board: Board) -> dict[str, Any]:
    identity = board.protocol["identity"]
    try:
        protocol = read_protocol(identity)
        words = [(what, say(protocol)) for what, say in FIELDS.values()]
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
        *(texts.warning_parts, texts.radius, texts.joined),
    )
    environment.filters |= {each.__name__: each for each in filters}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    environment.globals |= {
        "boards": boards,
        "version": __version__,
        "known_warnings": frozenset(WARNINGS),
        "benchmark_bibtex": texts.benchmark_bibtex(__version__),
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
