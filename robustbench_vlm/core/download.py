"""Downloads over https: resumed after an interruption, moved into place when complete, checked by size and sha256."""

import http.client
import os
import re
import shutil
import time
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained, sha256_of
from robustbench_vlm.core.http import Dropped, Missing, Refused, ask, check_address, read
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress

WAITS = (1.0, 2.0, 5.0, 15.0)
"""Seconds before each new attempt; the list starts over after every byte received."""


@dataclass(frozen=True)
class _Wanted:
    url: str
    path: Path
    sha256: str
    size: int | None
    on_progress: OnProgress

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def origin(self) -> Path:
        """File with the address and the server's validator (ETag or date) of the partial file."""
        return self.path.with_name(f"{self.path.name}.partial.origin")

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def by_hand(self, what: str) -> UserError:
        return UserError(f"{self.url} {what}; or fetch the file by hand and put it at {self.path}")


def download(
    url: str, path: Path, *, sha256: str = "", size: int | None = None, on_progress: OnProgress = ignore_progress
) -> str:
    """Fetch a file to `path`, where it appears whole or not at all, and return its sha256.

    A file that is there already is checked and kept. What came before a connection dropped stays beside it as
    `.partial`, and a later call continues from there. `sha256` and `size` (bytes), where given, must be the file's.
    `on_progress` counts bytes.

    Raises UserError for an address that is not https, a file that is not there or needs a login, a web page in its
    place, a file whose end cannot be known, a wrong size or digest, a full disk, and a server that cannot be reached.
    """
    from filelock import FileLock

    check_address(url)
    wanted = _Wanted(url, path, sha256, size, on_progress)
    if path.exists():
        return _checked(wanted)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        # Several processes of one training ask for the same weights at the same moment.
        with FileLock(lock):
            digest = _checked(wanted) if path.exists() else _fetch(wanted)
            lock.unlink(missing_ok=True)
    return digest


def hub_url(repository: str, file: str, revision: str = "main") -> str:
    """Return the address of a file on the Hugging Face hub, or on the mirror that HF_ENDPOINT names.

    A repository is "owner/name", one of data "datasets/owner/name".
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{endpoint.rstrip('/')}/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def _checked(wanted: _Wanted) -> str:
    digest, size = sha256_of(wanted.path), wanted.path.stat().st_size
    if wanted.sha256 not in ("", digest) or wanted.size not in (None, size):
        raise UserError(
            f"{wanted.path} has {size} bytes and sha256 {digest}, not"
            f" {'' if wanted.size is None else f'{wanted.size} bytes and '}sha256 {wanted.sha256 or '(any)'}: move it"
            " away, and the same command fetches it anew"
        )
    return digest


def _fetch(wanted: _Wanted) -> str:
    if _collect(wanted) and wanted.sha256 not in ("", sha256_of(wanted.partial)):
        # The server may have put another file there between two answers.
        wanted.discard()
        _collect(wanted)
    digest = sha256_of(wanted.partial)
    if wanted.sha256 not in ("", digest):
        wanted.discard()
        raise wanted.by_hand(f"is a file with sha256 {digest}, not {wanted.sha256}: it was changed, or is not the one")
    wanted.partial.replace(wanted.path)
    wanted.discard()
    return digest


def _collect(wanted: _Wanted) -> bool:
    """Fill the partial file; return True if it combines several responses."""
    attempts = most = 0
    while True:
        try:
            return _receive(wanted)
        except Refused as refused:
            raise wanted.by_hand(str(refused)) from refused
        except Dropped as dropped:
            here = _length(wanted.partial)
            attempts, most = (0 if here > most else attempts + 1), max(most, here)
            if attempts >= len(WAITS):
                raise wanted.by_hand(f"cannot be fetched: {dropped}; try later, what came is kept") from dropped
            time.sleep(WAITS[attempts])


def _receive(wanted: _Wanted) -> bool:
    """Add one response to the partial file; return True if it continued earlier bytes."""
    start, validator = _resumable(wanted)
    try:
        opened = ask(wanted.url, start, validator)
    except Missing as missing:
        if start and missing.size == start:
            # It was stopped after its last byte.
            return True
        # What is here is of another file.
        wanted.discard()
        raise
    with opened as answer:
        continues = answer.status == http.client.PARTIAL_CONTENT
        if continues and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            wanted.discard()
            raise Dropped("the server sent another part than was asked for")
        start = start if continues else 0
        total = _total(wanted, answer.headers, start)
        first = read(answer)
        if not start:
            _check_content(wanted, answer.headers, first)
        _check_has_end(wanted, answer, total)
        _check_space(wanted, start, total)
        _note_origin(wanted, answer.headers)
        with wanted.partial.open("ab" if start else "wb") as file:
            here, chunk = start, first
            while chunk:
                file.write(chunk)
                here += len(chunk)
                wanted.on_progress(Progress(here, total))
                chunk = read(answer)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and here != total:
        raise Dropped(f"it broke off after {here} of {total} bytes")
    return continues


def _resumable(wanted: _Wanted) -> tuple[int, str]:
    """Return the number of bytes that can be resumed, and the validator of their file."""
    if not wanted.partial.is_file() or not wanted.origin.is_file():
        return 0, ""
    url, _, validator = wanted.origin.read_text(encoding="utf-8").partition("\n")
    if url != wanted.url or not (validator or wanted.sha256):
        return 0, ""
    return _length(wanted.partial), validator


def _note_origin(wanted: _Wanted, headers: Message) -> None:
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    wanted.origin.write_text(f"{wanted.url}\n{validator}", encoding="utf-8")


def _total(wanted: _Wanted, headers: Message, start: int) -> int | None:
    length = headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else wanted.size
    if wanted.size not in (None, total):
        raise wanted.by_hand(f"is a file of {total} bytes, not of {wanted.size}: it was changed, or is not the one")
    return total


def _check_content(wanted: _Wanted, headers: Message, first: bytes) -> None:
    start = first[:4096].lstrip().lower()
    is_page = start.startswith((b"<!doctype html", b"<html")) or headers.get_content_type() == "text/html"
    if is_page:
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", first, re.IGNORECASE | re.DOTALL)
        said = f" with the title {title[1][:80].decode('utf-8', 'replace')!r}" if title else ""
        raise wanted.by_hand(
            f"answered with a web page{said} instead of a file, as servers do that want a login, a confirmation, or"
            " have had too many downloads today: open it in a browser"
        )


def _check_has_end(wanted: _Wanted, answer: http.client.HTTPResponse, total: int | None) -> None:
    if total is None and not wanted.sha256 and not answer.chunked:
        raise wanted.by_hand(
            "does not tell how long the file is, so one that was cut short could not be told from the whole one: see"
            " whether the paper's page has another address"
        )


def _check_space(wanted: _Wanted, start: int, total: int | None) -> None:
    free = shutil.disk_usage(wanted.path.parent).free
    if total is not None and total - start > free:
        raise UserError(
            f"{wanted.url} needs {(total - start) / 1e9:.2f} GB more, and the disk of {wanted.path.parent} has"
            f" {free / 1e9:.2f} GB free: free some space, or set VLMBENCH_CACHE to a folder on a larger disk"
        )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
