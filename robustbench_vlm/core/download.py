"""Download files over https, with resume after an interruption and checks of size and sha256."""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.addresses import check_address
from robustbench_vlm.core.download_speed import (
    LIMITS,
    Limits,
    OnSlow,
    SlowDownload,
    SpeedCheck,
    once,
    stop,
    tell,
    warn_slow,
)
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import exclusive_lock, explained, sha256_of, sync
from robustbench_vlm.core.http import (
    PermanentFailure,
    RangeNotSatisfiable,
    Refused,
    TemporaryFailure,
    Unreachable,
    open_response,
)
from robustbench_vlm.core.hub_access import expect_online, explain_refusal, is_on_hub, lfs_sha256, login_headers
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress

if TYPE_CHECKING:
    from httpx2 import Headers, Response

WAITS = (1.0, 2.0, 5.0, 15.0)
"""Seconds to wait before each new attempt. After an attempt that received data, the waits start again at the first
value.
"""
_UNREACHABLE_ATTEMPTS = 2
"""Number of attempts to reach a host that has not sent data yet. The number is small, so that a machine without a
network gets an error within seconds.
"""


@dataclass(frozen=True)
class _Request:
    url: str
    path: Path
    sha256: str
    size: int | None
    on_progress: OnProgress
    limits: Limits

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def origin(self) -> Path:
        """The path of the file that stores the `_Origin` (address, version and digest) of the partial file."""
        return self.path.with_name(f"{self.path.name}.partial.origin")

    def discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.url} {problem}; or download the file manually and save it as {self.path}")


@dataclass(frozen=True)
class _Origin:
    """The address, file version and digest of a download. These values are stored next to the partial file."""

    url: str = ""
    validator: str = ""
    """The version of the file on the server: its ETag or date."""
    sha256: str = ""
    """The digest that the Hugging Face hub states, or "" if the hub does not state it."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    on_progress: OnProgress = ignore_progress,
    alternatives: Sequence[str] = (),
    on_slow: OnSlow = warn_slow,
    limits: Limits = LIMITS,
) -> str:
    """Download a file to `path` and return its sha256, 64 hexadecimal digits.

    The file at `path` is created when the download is complete. If the connection breaks, the received bytes are kept
    in a `.partial` file in the folder of `path`, and a later call resumes the download. If `path` already exists, the
    file is checked and not downloaded again.

    For files on the Hugging Face hub, HF_TOKEN or the stored login is sent to the hub. The digest that the hub states
    is compared with the digest of the file.

    Args:
        url: The https address of the file.
        path: The file to write.
        sha256: The expected digest. "" accepts any digest.
        size: The expected size in bytes. None accepts any size.
        on_progress: A function that is called with the number of received bytes.
        alternatives: Other addresses of the same file. They are tried in this order if an address fails or is slow. If
            all addresses that work are slow, the fastest one is used.
        on_slow: A function that is called once with a SlowDownload if the download is slow and no other address is
            left. The default prints a message on stderr. If the function raises the SlowDownload, the download stops
            and the received bytes are kept.
        limits: The limits for slow downloads and for waiting.

    Raises:
        UserError: The address is not https, or its host is not public and not allowed. The server cannot be reached.
            The file does not exist or requires a login, or the server sends a web page. The server does not state the
            size of the file. The size or digest of the file is wrong. The server asks to wait longer than the limit.
            The disk is full.
        SlowDownload: `on_slow` raised it.
    """
    urls = [url, *alternatives]
    for each in urls:
        check_address(each, resolve=False)
    requests = [_Request(each, path, sha256, size, on_progress, limits) for each in urls]
    if path.exists():
        return _checked(requests[0])
    lock = path.with_name(f".{path.name}.lock")
    # The lock is needed, because several processes of one training may request the same weights at the same time.
    with explained(path), exclusive_lock(lock, wait=True):
        digest = _checked(requests[0]) if path.exists() else _fetch_any(requests, once(on_slow))
        lock.unlink(missing_ok=True)
    return digest


def _checked(request: _Request) -> str:
    digest, size = sha256_of(request.path), request.path.stat().st_size
    if request.sha256 not in ("", digest) or request.size not in (None, size):
        raise UserError(
            f"{request.path} has {size} bytes and sha256 {digest}, expected"
            f" {'' if request.size is None else f'{request.size} bytes and '}sha256 {request.sha256 or '(any)'}:"
            " move or delete it, then repeat the command to download it again"
        )
    return digest


def _fetch_any(requests: Sequence[_Request], on_slow: OnSlow) -> str:
    """Download from the first address that works and is not slow. Return the sha256."""
    if len(requests) == 1:
        return _fetch(requests[0], on_slow)
    failures: list[str] = []
    slow: list[tuple[float, _Request]] = []
    for request in requests:
        try:
            return _fetch(request, stop)
        except SlowDownload as found:
            slow.append((found.rate, request))
            tell(f"{found}; another address is tried")
        except UserError as error:
            failures.append(str(error))
    if not slow:
        raise UserError("\n".join(failures))
    return _fetch(max(slow, key=lambda each: each[0])[1], on_slow)


def _fetch(request: _Request, on_slow: OnSlow) -> str:
    if is_on_hub(request.url):
        expect_online(request.url)
    if _collect(request, on_slow) and _expected(request) not in ("", sha256_of(request.partial)):
        # The file on the server may have changed between two responses, so the whole file is downloaded again.
        request.discard()
        _collect(request, on_slow)
    digest, expected = sha256_of(request.partial), _expected(request)
    if expected not in ("", digest):
        request.discard()
        raise _wrong_digest(request, digest, expected)
    request.partial.replace(request.path)
    request.discard()
    return digest


def _expected(request: _Request) -> str:
    return request.sha256 or _read_origin(request).sha256


def _wrong_digest(request: _Request, digest: str, expected: str) -> UserError:
    return request.error(
        f"is a file with sha256 {digest}, expected {expected}: the file on the server has changed, or the address is"
        " wrong; check the address"
    )


def _collect(request: _Request, on_slow: OnSlow) -> bool:
    """Download until the partial file is complete. Return True if its bytes come from several responses."""
    attempts, first, waited = 0, _length(request.partial), 0.0
    most = first
    while True:
        try:
            return _receive(request, on_slow)
        except PermanentFailure as failure:
            raise request.error(_reason(failure)) from failure
        except TemporaryFailure as failure:
            received = _length(request.partial)
            attempts, waited = (0, 0.0) if received > most else (attempts + 1, waited + failure.wait)
            most = max(most, received)
            if waited > request.limits.longest_wait:
                raise request.error(
                    f"cannot be downloaded: {failure} and asks to wait {failure.wait:.0f} seconds; the received part is"
                    f" kept, try again after {_clock(failure.wait)}"
                ) from failure
            unreachable = isinstance(failure, Unreachable) and most == first
            if attempts >= min(_UNREACHABLE_ATTEMPTS if unreachable else len(WAITS), len(WAITS)):
                kept = "the received part is kept, " if received else ""
                raise request.error(f"cannot be downloaded: {failure}; {kept}try again later") from failure
            if failure.wait:
                tell(
                    f"{request.url}: {failure} and asks to wait. The download continues in {failure.wait:.0f} seconds,"
                    f" at {_clock(failure.wait)}; press Ctrl-C to stop, and repeat the command later to continue"
                )
            time.sleep(max(WAITS[attempts], failure.wait))


def _reason(failure: PermanentFailure) -> str:
    explained = explain_refusal(failure.url, failure.status, failure.headers) if isinstance(failure, Refused) else ""
    return explained or str(failure)


def _clock(seconds: float) -> str:
    """Return the local time that is `seconds` from now, as text."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + seconds))


def _receive(request: _Request, on_slow: OnSlow) -> bool:
    """Write one response to the partial file. Return True if the file already had bytes from an earlier response."""
    start, validator = _resumable(request)
    try:
        with open_response(request.url, start, validator, login_headers(request.url)) as response:
            return _write(request, response, start, on_slow)
    except RangeNotSatisfiable as failure:
        if start and failure.size == start:
            # An earlier call received the whole file and was stopped before it moved the file into place.
            return True
        # The partial file is from an earlier version of the file on the server, so it is discarded.
        request.discard()
        raise


def _write(request: _Request, response: "Response", start: int, on_slow: OnSlow) -> bool:
    continues = response.status_code == 206
    if continues and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        request.discard()
        raise TemporaryFailure("the server sent a different part of the file than requested")
    start = start if continues else 0
    total = _total(request, response.headers, start)
    origin = _origin(request, response, _read_origin(request).sha256 if continues else "")
    if request.sha256 and origin.sha256 not in ("", request.sha256):
        raise _wrong_digest(request, origin.sha256, request.sha256)
    chunks = response.iter_raw()
    chunk = next(chunks, b"")
    if not start:
        _check_content(request, response.headers, chunk)
    _check_has_end(request, response.headers, total)
    _check_space(request, start, total)
    request.origin.write_text("\n".join((origin.url, origin.validator, origin.sha256)), encoding="utf-8")
    speed, received = SpeedCheck(request.url, request.limits, start), start
    with request.partial.open("ab" if start else "wb") as file:
        while chunk:
            file.write(chunk)
            received += len(chunk)
            request.on_progress(Progress(received, total))
            if slow := speed.slow(received, total):
                on_slow(slow)
            chunk = next(chunks, b"")
        sync(file)
    if total is not None and received != total:
        raise TemporaryFailure(f"the connection broke off after {received} of {total} bytes")
    return continues


def _resumable(request: _Request) -> tuple[int, str]:
    """Return the size in bytes and the ETag or date of the partial file.

    Return (0, "") if the download cannot be resumed. If the sha256 of the file is known, a download from one address
    may be resumed from another address, because the digest is checked at the end.
    """
    origin = _read_origin(request)
    validator = origin.validator if origin.url == request.url else ""
    if not request.partial.is_file() or not origin.url or not (validator or request.sha256):
        return 0, ""
    return _length(request.partial), validator


def _read_origin(request: _Request) -> _Origin:
    if not request.origin.is_file():
        return _Origin()
    url, validator, sha256 = [*request.origin.read_text(encoding="utf-8").split("\n"), "", ""][:3]
    return _Origin(url, validator, sha256)


def _origin(request: _Request, response: "Response", before: str) -> _Origin:
    """Return the address, file version and digest of a response, as an `_Origin`.

    If the response does not state a digest, `before` is used: the digest from an earlier response, or "".
    """
    tag = response.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    stated = [lfs_sha256(str(each.url), each.headers) for each in (*response.history, response)]
    return _Origin(request.url, validator, next(filter(None, stated), before))


def _total(request: _Request, headers: "Headers", start: int) -> int | None:
    length = headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else request.size
    if request.size not in (None, total):
        raise request.error(
            f"is a file of {total} bytes, expected {request.size}: the file on the server has changed, or the address"
            " is wrong; check the address"
        )
    return total


def _check_content(request: _Request, headers: "Headers", first: bytes) -> None:
    start = first[:4096].lstrip().lower()
    is_page = start.startswith((b"<!doctype html", b"<html")) or headers.get("Content-Type", "").startswith("text/html")
    if is_page:
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", first, re.IGNORECASE | re.DOTALL)
        shown = f" with the title {title[1][:80].decode('utf-8', 'replace')!r}" if title else ""
        raise request.error(
            f"returned a web page{shown} instead of a file: servers do this if they require a login or a confirmation,"
            " or if a download limit is reached; open the address in a browser"
        )


def _check_has_end(request: _Request, headers: "Headers", total: int | None) -> None:
    if total is None and not request.sha256 and "chunked" not in headers.get("Transfer-Encoding", ""):
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
