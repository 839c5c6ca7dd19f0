"""Download files over https, with resume after an interruption and checks of size and sha256."""

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
from robustbench_vlm.core.files import exclusive_lock, explained, sha256_of, sync
from robustbench_vlm.core.http import (
    PermanentFailure,
    RangeNotSatisfiable,
    TemporaryFailure,
    check_address,
    open_response,
    read_chunk,
)
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress

WAITS = (1.0, 2.0, 5.0, 15.0)
"""Seconds to wait before each new attempt. If an attempt received data, the waits start again with the first."""


@dataclass(frozen=True)
class _Request:
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
        """The path of a small file with the address of the download and its version on the server (ETag or date)."""
        return self.path.with_name(f"{self.path.name}.partial.origin")

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.url} {problem}; or download the file manually and save it as {self.path}")


def download(
    url: str, path: Path, *, sha256: str = "", size: int | None = None, on_progress: OnProgress = ignore_progress
) -> str:
    """Download a file to `path` and return its sha256, 64 hexadecimal digits.

    The file at `path` is created when the download is complete. If the connection breaks, the received bytes are kept
    in a `.partial` file in the folder of `path`, and a later call resumes the download. If `path` already exists, the
    file is checked and not downloaded again.

    Args:
        url: The https address of the file.
        path: The file to write.
        sha256: The expected digest. "" accepts any digest.
        size: The expected size in bytes. None accepts any size.
        on_progress: A function that is called with the number of received bytes.

    Raises:
        UserError: The address is not https, or the server cannot be reached. The file does not exist or requires a
            login, or the server sends a web page. The server does not state the size of the file. The size or digest of
            the file is wrong. The disk is full.
    """
    check_address(url)
    request = _Request(url, path, sha256, size, on_progress)
    if path.exists():
        return _checked(request)
    lock = path.with_name(f".{path.name}.lock")
    # Several processes of one training may request the same weights at the same time.
    with explained(path), exclusive_lock(lock, wait=True):
        digest = _checked(request) if path.exists() else _fetch(request)
        lock.unlink(missing_ok=True)
    return digest


def hub_url(repository: str, file: str, revision: str = "main") -> str:
    """Return the address of a file on the Hugging Face hub, or on its mirror in the environment variable HF_ENDPOINT.

    `repository` is "owner/name" for a model and "datasets/owner/name" for a dataset.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{endpoint.rstrip('/')}/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(file)}"


def _checked(request: _Request) -> str:
    digest, size = sha256_of(request.path), request.path.stat().st_size
    if request.sha256 not in ("", digest) or request.size not in (None, size):
        raise UserError(
            f"{request.path} has {size} bytes and sha256 {digest}, expected"
            f" {'' if request.size is None else f'{request.size} bytes and '}sha256 {request.sha256 or '(any)'}:"
            " move or delete it, then repeat the command to download it again"
        )
    return digest


def _fetch(request: _Request) -> str:
    if _collect(request) and request.sha256 not in ("", sha256_of(request.partial)):
        # The file on the server may have changed between two responses. Download the whole file again.
        request.discard()
        _collect(request)
    digest = sha256_of(request.partial)
    if request.sha256 not in ("", digest):
        request.discard()
        raise request.error(
            f"is a file with sha256 {digest}, expected {request.sha256}: the file on the server has changed, or the"
            " address is wrong; check the address"
        )
    request.partial.replace(request.path)
    request.discard()
    return digest


def _collect(request: _Request) -> bool:
    """Download until the partial file is complete. Return True if its bytes come from several responses."""
    attempts = most = 0
    while True:
        try:
            return _receive(request)
        except PermanentFailure as failure:
            raise request.error(str(failure)) from failure
        except TemporaryFailure as failure:
            received = _length(request.partial)
            attempts, most = (0 if received > most else attempts + 1), max(most, received)
            if attempts >= len(WAITS):
                raise request.error(
                    f"cannot be downloaded: {failure}; the received part is kept, try again later"
                ) from failure
            time.sleep(WAITS[attempts])


def _receive(request: _Request) -> bool:
    """Write one response to the partial file. Return True if the file already had bytes from an earlier response."""
    start, validator = _resumable(request)
    try:
        opened = open_response(request.url, start, validator)
    except RangeNotSatisfiable as failure:
        if start and failure.size == start:
            # An earlier call received the whole file and was stopped before it moved the file into place.
            return True
        # The partial file has bytes of an earlier version of the file on the server.
        request.discard()
        raise
    with opened as response:
        continues = response.status == http.client.PARTIAL_CONTENT
        if continues and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            request.discard()
            raise TemporaryFailure("the server sent a different part of the file than requested")
        start = start if continues else 0
        total = _total(request, response.headers, start)
        first = read_chunk(response)
        if not start:
            _check_content(request, response.headers, first)
        _check_has_end(request, response, total)
        _check_space(request, start, total)
        _write_origin(request, response.headers)
        with request.partial.open("ab" if start else "wb") as file:
            received, chunk = start, first
            while chunk:
                file.write(chunk)
                received += len(chunk)
                request.on_progress(Progress(received, total))
                chunk = read_chunk(response)
            sync(file)
    if total is not None and received != total:
        raise TemporaryFailure(f"the connection broke off after {received} of {total} bytes")
    return continues


def _resumable(request: _Request) -> tuple[int, str]:
    """Return the size in bytes and the ETag or date of the partial file.

    Return (0, "") if the download cannot be resumed.
    """
    if not request.partial.is_file() or not request.origin.is_file():
        return 0, ""
    url, _, validator = request.origin.read_text(encoding="utf-8").partition("\n")
    if url != request.url or not (validator or request.sha256):
        return 0, ""
    return _length(request.partial), validator


def _write_origin(request: _Request, headers: Message) -> None:
    tag = headers.get("ETag", "")
    validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")
    request.origin.write_text(f"{request.url}\n{validator}", encoding="utf-8")


def _total(request: _Request, headers: Message, start: int) -> int | None:
    length = headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else request.size
    if request.size not in (None, total):
        raise request.error(
            f"is a file of {total} bytes, expected {request.size}: the file on the server has changed, or the address"
            " is wrong; check the address"
        )
    return total


def _check_content(request: _Request, headers: Message, first: bytes) -> None:
    start = first[:4096].lstrip().lower()
    is_page = start.startswith((b"<!doctype html", b"<html")) or headers.get_content_type() == "text/html"
    if is_page:
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", first, re.IGNORECASE | re.DOTALL)
        shown = f" with the title {title[1][:80].decode('utf-8', 'replace')!r}" if title else ""
        raise request.error(
            f"returned a web page{shown} instead of a file: servers do this if they require a login or a confirmation,"
            " or if a download limit is reached; open the address in a browser"
        )


def _check_has_end(request: _Request, response: http.client.HTTPResponse, total: int | None) -> None:
    if total is None and not request.sha256 and not response.chunked:
        raise request.error(
            "does not state the size of the file, so an incomplete download could not be detected: check whether the"
            " paper's page lists another address"
        )


def _check_space(request: _Request, start: int, total: int | None) -> None:
    free = shutil.disk_usage(request.path.parent).free
    if total is not None and total - start > free:
        raise UserError(
            f"{request.url} needs {(total - start) / 1e9:.2f} GB more, but the disk of {request.path.parent} has only"
            f" {free / 1e9:.2f} GB free: free some space, or set VLMBENCH_CACHE to a folder on a larger disk"
        )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
