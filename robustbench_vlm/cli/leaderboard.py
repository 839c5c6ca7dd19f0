"""The commands `vlmbench leaderboard build|check|serve|migrate`: make the tables and the site from the entries."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_vlm.cli.options import Json, example, option
from robustbench_vlm.cli.render.output import Line, answer, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, package_folder, write_text

if TYPE_CHECKING:
    from robustbench_vlm.leaderboard.board import Board
    from robustbench_vlm.leaderboard.site import EntryFiles

_Folder = Annotated[
    Path | None,
    option("--folder", "DIR", "Folder of entries. Default: ./leaderboards if it exists, or the folder in the package."),
]
_Site = Annotated[Path, option("--site", "DIR", "Folder that the site is written to.")]
_Port = Annotated[int, option("--port", "N", "Port on this machine. 0 chooses a free port.")]

_MAX_WORKERS = 8
"""Largest number of processes that read entries. Each of them has about 120 MB."""

app = typer.Typer(help="Build the leaderboard from its entries.", rich_markup_mode=None)


@app.command(epilog=example("vlmbench leaderboard build --site site"))
def build(folder: _Folder = None, site: _Site = Path("site"), as_json: Json = False) -> None:
    """Write the Markdown tables and the site of all tracks."""
    from robustbench_vlm.leaderboard.site import write_site
    from robustbench_vlm.leaderboard.views import views

    place = _place(folder)
    boards = _boards(place)
    # The rows are needed until the end. Without this line, the garbage collector checks all of them again and again.
    gc.freeze()
    made = views(boards, place)
    for path, text in made.items():
        write_text(path, text)
    entries, examples = _entries(place, boards), _examples(place, boards)
    write_site(boards, site, entries=entries, examples=examples, cache=_cache())
    written = [*map(str, made), str(site / "index.html")]
    answer({"written": written}, lambda width: [Line(f"wrote {name}") for name in written], as_json=as_json)


@app.command(epilog=example("vlmbench leaderboard check"))
def check(folder: _Folder = None, as_json: Json = False) -> int:
    """Check every entry, and compare the Markdown tables with the entries.

    Exit code 1: a table differs from the entries. Exit code 2: an entry is invalid, or a file of counterexamples
    belongs to no entry. A message names each such entry and file.
    """
    from robustbench_vlm.leaderboard.counterexamples import unnamed_images
    from robustbench_vlm.leaderboard.views import views

    place = _place(folder)
    boards = _boards(place)
    made = views(boards, place)
    refused = [f"{board.track}/{name}.json" for board in boards for name in board.refused]
    unnamed = [str(path) for board in boards for path in unnamed_images(place / board.track)]
    differ = [str(path) for path, text in made.items() if not path.is_file() or path.read_bytes() != text.encode()]
    lines = [
        Line(f"{name} differs from the entries; run `vlmbench leaderboard build` to write it again", "red")
        for name in differ
    ]
    lines += [Line(f"{name} is not a valid entry; correct or remove it", "red") for name in refused]
    lines += [Line(f"{name} belongs to no counterexample of an entry; remove it", "red") for name in unnamed]
    lines = lines or [Line(f"{len(made)} tables agree with the entries")]
    answer({"differ": differ, "refused": refused, "unnamed": unnamed}, lambda width: lines, as_json=as_json)
    return 2 if refused or unnamed else 1 if differ else 0


@app.command(epilog=example("vlmbench leaderboard serve --port 8000"))
def serve(folder: _Folder = None, port: _Port = 8000) -> None:
    """Build the site and serve it on this machine until Ctrl-C."""
    import tempfile

    from robustbench_vlm.leaderboard.site import serve as show
    from robustbench_vlm.leaderboard.site import write_site

    place = _place(folder)
    with tempfile.TemporaryDirectory() as site:

        def build() -> None:
            note(f"building the site of {place}; a page that is opened now appears when the site is ready")
            with progress("pages"):
                boards = _boards(place)
                write_site(boards, Path(site), entries=_entries(place, boards), examples=_examples(place, boards))
            note("the site is ready")

        show(Path(site), port, build, lambda address: note(f"the site is at {address} until Ctrl-C"))


@app.command(epilog=example("vlmbench leaderboard migrate leaderboards/mini/*.json"))
def migrate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Leaderboard entries and model cards of an earlier format.")
    ],
    as_json: Json = False,
) -> None:
    """Rewrite leaderboard entries and model cards of an earlier format in the current format.

    The old fingerprints are checked first. Records and verdicts do not change. The migration is added to the history of
    each entry.
    """
    import datetime

    from robustbench_vlm.leaderboard.migrate import migrate_file

    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    done = {str(path): migrate_file(path, date=date) for path in files}
    lines = [
        Line(f"migrated {path}" if changed else f"the file is already in the current format: {path}")
        for path, changed in done.items()
    ]
    answer({"migrated": [path for path, changed in done.items() if changed]}, lambda width: lines, as_json=as_json)


def _place(folder: Path | None) -> Path:
    if folder is None:
        own = Path("leaderboards")
        folder = own if own.is_dir() else package_folder("leaderboards")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a folder of leaderboards with --folder DIR")
    return folder


def _cache() -> Path:
    """Return the folder with the summaries of entries and the list of written pages. It can be deleted at any time."""
    return cache_folder() / "boards"


def _boards(folder: Path) -> "list[Board]":
    from robustbench_vlm.engine.resources import cores
    from robustbench_vlm.leaderboard.ranking import make_board
    from robustbench_vlm.tracks import TRACKS

    names = [name for name in TRACKS.names() if (folder / name).is_dir()]
    boards = [make_board(name, folder / name, _cache(), workers=min(cores(), _MAX_WORKERS)) for name in names]
    for why in (why for board in boards for why in (*board.absent.values(), *board.refused.values())):
        note(f"left out: {why}")
    return boards


def _examples(folder: Path, boards: "Sequence[Board]") -> dict[tuple[str, str], Path]:
    """Return the paths of the example figures next to the entries. The keys are pairs of track and model."""
    places = {
        (board.track, row.model): folder / board.track / "examples" / f"{row.model}.png"
        for board in boards
        for row in board.rows
    }
    return {key: path for key, path in places.items() if path.is_file()}


def _entries(folder: Path, boards: "Sequence[Board]") -> "EntryFiles":
    from robustbench_vlm.leaderboard.site import EntryFiles

    names = [(board.track, row.model) for board in boards for row in board.rows]
    return EntryFiles({(track, model): folder / track / f"{model}.json" for track, model in names})
