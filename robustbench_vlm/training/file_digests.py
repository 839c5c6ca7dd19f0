"""Compute one digest of the contents of many image files. The digest is computed again only if a file changes."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, sha256_of, write_text

_THREADS = 8
_CHUNK = 4096


def content_digest(path_of: Callable[[int], Path], indices: Sequence[int]) -> str:
    """Return a sha256 of the contents of the files at N indices, in this order. File names do not change the sha256.

    The cache folder keeps the digest together with the size and the times of every file. If size and times are
    unchanged, a second call does not read the files. Raises UserError if a file cannot be read.
    """
    key = hashlib.sha256()
    for part in _chunks(path_of, indices, _status):
        key.update("".join(part).encode(errors="surrogateescape"))
    cached = cache_folder() / "image_digests" / key.hexdigest()
    # If the cache cannot be read or written, the digest is computed again. The result is the same, but the call takes
    # more time.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(known := cached.read_text(encoding="utf-8")) == hashlib.sha256().digest_size * 2:
            return known
    found = hashlib.sha256()
    for part in _chunks(path_of, indices, _sha256):
        found.update("".join(part).encode())
    with contextlib.suppress(UserError):
        write_text(cached, found.hexdigest())
    return found.hexdigest()


def _chunks(
    path_of: Callable[[int], Path], indices: Sequence[int], function: Callable[[Path], str]
) -> Iterator[list[str]]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="image digests") as pool:
        for start in range(0, len(indices), _CHUNK):
            yield list(pool.map(lambda index: function(path_of(index)), indices[start : start + _CHUNK]))


def _status(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    # st_ctime is included, because programs can set st_mtime back to an earlier value, but not st_ctime.
    return f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0"


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read the image {path}: {error.strerror}; repair or remove the file")
