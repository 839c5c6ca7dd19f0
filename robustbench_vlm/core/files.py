"""File helpers: atomic writes, digests, paths inside a folder, and messages for errors of the file system."""

import contextlib
import errno
import functools
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
"""Error numbers that mean: the file system does not support this operation. An example is a lock on some network file
systems."""
_REFUSED = (*_UNSUPPORTED, errno.EPERM, errno.EACCES, errno.EISDIR, errno.EBADF)
"""Error numbers that mean: the file system refuses this operation. Optional operations ignore these errors."""


def package_folder(name: str) -> Path:
    """Return the data folder `name` ("model_zoo" or "leaderboards") in the installed package or in the source tree."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_folder() -> Path:
    """Return the cache folder for downloads and prepared data: VLMBENCH_CACHE, or ~/.cache/robustbench_vlm."""
    return folder_of_variable("VLMBENCH_CACHE") or _home() / ".cache" / "robustbench_vlm"


def folder_of_variable(name: str) -> Path | None:
    """Return the folder in an environment variable, with a leading "~" replaced by the home folder.

    Return None if the variable is not set. Raises UserError if the value has "~" and the home folder is unknown.
    """
    text = os.environ.get(name)
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError as error:
        raise UserError(
            f"the environment variable {name} is {text!r}, but the home folder in it is unknown: give the path of a"
            " folder without ~"
        ) from error


def user_path(path: str | Path) -> Path:
    """Replace a leading "~" or "~user" in a path by the home folder, as a shell does.

    "./~" is a folder with the name "~". Raises UserError if the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} begins with {Path(path).parts[0]!r}, but the home folder of this user is unknown: give the full"
            f" path, or ./{path} for a folder of this name"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the sha256 digest of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ahead(path: Path, start: int, length: int) -> None:
    """Ask the operating system to load part of a file into its page cache in the background.

    `start` and `length` are in bytes. If the operating system cannot do this, the function does nothing.
    """
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file, contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file in the folder of `path`, then rename that file to `path`.

    `path` therefore never has a partly written file. Raises UserError if the folder cannot be written or the disk is
    full. In this case, an existing file at `path` remains unchanged.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            with _tolerated(_REFUSED):
                partial.chmod(0o644)
            with partial.open("rb") as file:
                sync(file)
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def read_text(path: Path, advice: str) -> str:
    """Return the text of a UTF-8 file; raise UserError with `advice` if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; {advice}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a matplotlib figure to a .png or .svg file atomically, with `write_whole`."""
    suffix = path.suffix.lower().removeprefix(".")
    with warnings.catch_warnings():
        # If the font lacks a character, matplotlib draws a box and issues a warning. The warning does not help users,
        # so it is hidden.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        write_whole(path, lambda partial: figure.savefig(partial, dpi=150, format=suffix))


def inside(folder: Path, relative: str) -> Path:
    """Return the resolved path `folder / relative`; raise UserError if it is outside the folder."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"the path {relative!r} is outside the folder {folder}: give a path inside it")
    return path


def paths_inside(folder: Path) -> Callable[[str], Path]:
    """Return a function that gives the same paths as `inside`. It is faster for many paths in few subfolders.

    The subfolders must not change to symbolic links while the function is used.
    """

    @functools.cache
    def parent_of(relative: str) -> Path:
        return inside(folder, relative)

    def path_of(relative: str) -> Path:
        parent, slash, name = relative.rpartition("/")
        path = parent_of(parent or slash) / name
        return inside(folder, relative) if name in ("", ".", "..") or path.is_symlink() else path

    return path_of


def check_utf8(name: str, folder: Path) -> None:
    """Raise UserError if a file name in a folder is not UTF-8, because records store sample names as UTF-8.

    If the locale makes Python read file names in another encoding, only ASCII names are accepted.
    """
    encoding = sys.getfilesystemencoding()
    try:
        shown = os.fsencode(folder / name).decode(errors="backslashreplace")
    except UnicodeEncodeError:
        # The name is from a list file, and the encoding of the locale cannot represent this name, so it is shown with
        # ASCII escapes.
        shown = ascii(str(folder / name))
    if not name.isascii() and encoding != "utf-8":
        raise UserError(
            f"cannot use the file name {shown}: the locale makes Python read file names as {encoding}, expected UTF-8:"
            " set the environment variable PYTHONUTF8=1"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the file name {shown} is not UTF-8, but records identify samples by file name: rename it"
        ) from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise UserError with the reason and advice if the `with` block fails to write `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number in _REASONS:
            reason = _REASONS[number]
        elif isinstance(error, OSError):
            reason = os_reason(error)
        else:
            raise
        raise UserError(f"cannot write {path}: {reason}, then repeat the command; nothing is lost") from error


_REASONS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: give another folder",
    errno.EACCES: "you may not write in this folder: give another folder",
    errno.EPERM: "you may not write in this folder: give another folder",
    errno.ENOENT: "the path does not exist and cannot be created: give another path",
    errno.ENOTDIR: "a part of the path is a file: give another folder",
    errno.EEXIST: "a part of the path is a file: give another folder",
    errno.EISDIR: "the path is a folder: remove that folder or give another one",
    errno.ENOTEMPTY: "the folder is not empty: give another folder",
    errno.ENAMETOOLONG: "the name is too long for this file system: give a shorter path",
    errno.ELOOP: "the path has symbolic links that point to each other: give another path",
    errno.EINVAL: "the file system does not allow this operation: give another path",
    errno.EFBIG: "the file is larger than the limit of this system: raise the limit (ulimit -f)",
    errno.EMFILE: "the process has too many open files: raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error: check the disk or give another folder",
    errno.ENFILE: "the system has too many open files: close other programs",
    errno.ENOMEM: "the memory is used up: close other programs, or use fewer --workers",
    errno.EAGAIN: "the system has too many processes: close other programs, or use fewer --workers",
}
"""Reason and advice for each error of the operating system that may happen during a write. The keys are error numbers.
"""


def os_reason(error: OSError) -> str:
    """Return the reason for an error of the operating system and the advice for the user, separated by a colon."""
    reason = f"{error.strerror or error or type(error).__name__}: check the path and the file system"
    return _REASONS.get(error.errno or 0, reason)


def os_error_message(error: OSError) -> str:
    """Return the message for an error of the operating system that was not converted to a UserError."""
    paths = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not paths:
        return f"the operating system reports an error: {error.strerror or error}: fix it, then repeat the command"
    reasons = {
        errno.ENOENT: "the path does not exist: check it",
        errno.EACCES: "you do not have the permission: change the permissions, or give another path",
        errno.EPERM: "you do not have the permission: change the permissions, or give another path",
    }
    reason = reasons.get(error.errno or 0) or os_reason(error)
    return f"cannot use {' and '.join(paths)}: {reason}, then repeat the command"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UserError(
            "the home folder of this user is unknown, so a folder for downloads and caches cannot be chosen: set the"
            " environment variable VLMBENCH_CACHE to a folder"
        ) from error


def _errno_of(error: BaseException | None) -> int | None:
    """Return the error number of an OSError that is `error` or caused it. Return None if no such OSError exists.

    If writing a file fails, torch raises a RuntimeError whose cause is an OSError. The message of a safetensors error
    contains the error number.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def sync(file: IO[bytes]) -> None:
    """Flush an open file to the disk; warn if its file system cannot do that."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _warn_once(
            "the file system does not support fsync, so a power failure may damage the newest files: if this"
            " happens, run the same command again"
        )


@contextmanager
def exclusive_lock(path: Path, *, wait: bool) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is created if it is missing, and yield its file descriptor.

    If another process holds the lock, wait until it is released, or raise BlockingIOError if `wait` is false. The
    operating system releases the lock when the process ends. If the file system does not support locks, warn and
    continue without a lock. Raises UserError if the file cannot be written.
    """
    import fcntl

    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (*_UNSUPPORTED, errno.ENOLCK):
                raise
            _warn_once(
                f"the file system of {path.parent} does not support locks ({os.strerror(error.errno)}): make sure that"
                " only one process at a time writes to this folder"
            )
        yield handle
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a renamed file survives a power failure.

    If the file system refuses this, do nothing.
    """
    with _tolerated(_REFUSED):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _tolerated(numbers: Sequence[int]) -> Iterator[None]:
    """Suppress an OSError whose error number is in `numbers`."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
