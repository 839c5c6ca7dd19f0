"""Files: whole or not at all, checked by digest, kept inside their folder."""

import errno
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def package_folder(name: str) -> Path:
    """Return a data folder (model_zoo, leaderboards) of the installed wheel, or of the source tree around it."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_folder() -> Path:
    """Return the folder for what is fetched or prepared once: VLMBENCH_CACHE, or ~/.cache/robustbench_vlm."""
    return Path(os.environ.get("VLMBENCH_CACHE") or "~/.cache/robustbench_vlm").expanduser()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ahead(path: Path, start: int, length: int) -> None:
    """Have the system read bytes of a file into its memory meanwhile; where it takes no advice, nothing happens."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it there in one step: whole or not at all.

    Raises UserError where the folder cannot be written or the disk is full; what stood at `path` is kept then.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure of matplotlib to a .png or .svg file whole or not at all."""
    suffix = path.suffix.lower().removeprefix(".")
    with warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        write_whole(path, lambda partial: figure.savefig(partial, dpi=150, format=suffix))


def inside(folder: Path, relative: str) -> Path:
    """Return `folder / relative`; raise UserError where that would lie outside the folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"the path {relative!r} leaves the folder {folder}: give a path inside it")
    return path


def check_utf8(name: str, folder: Path) -> None:
    """Raise UserError for the name of a file in a folder that is not UTF-8: no record could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(folder / name).decode(errors="backslashreplace")
        raise UserError(
            f"the file name {shown} is not UTF-8, and samples are known by their names: rename it"
        ) from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the failures to write `path` that a user can mend into UserError: full disk, no permission, no folder."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full: free some space",
            errno.EDQUOT: "the disk quota is used up: free some space",
            errno.EROFS: "the file system is read-only: name another folder",
            errno.EACCES: "the folder may not be written: name another one",
            errno.EPERM: "the folder may not be written: name another one",
            errno.ENOTDIR: "a part of the path is a file: name another folder",
            errno.EEXIST: "a part of the path is a file: name another folder",
            errno.EFBIG: "the file would be larger than this system allows: raise the limit (ulimit -f)",
        }
        if error.errno not in reasons:
            raise
        reason = reasons[error.errno]
        raise UserError(f"cannot write {path}: {reason}, then give the same command again; nothing is lost") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
