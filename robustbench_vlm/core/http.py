"""HTTP requests over https. A retry may succeed after a `TemporaryFailure`, but not after a `PermanentFailure`."""

import http.client
import ipaddress
import ssl
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import urlsplit

from robustbench_vlm import __version__
from robustbench_vlm.core.errors import UserError

TIMEOUT = 30.0
"""Timeout in seconds. If a connection receives no data for this time, it counts as broken."""
_CHUNK = 1 << 20
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class TemporaryFailure(Exception):
    """The connection broke, the server did not respond, or it reported a temporary error. A retry may succeed."""


class RangeNotSatisfiable(TemporaryFailure):
    """The requested part starts after the end of the file on the server (HTTP status 416)."""

    def __init__(self, content_range: str) -> None:
        super().__init__("the requested part starts after the end of the file on the server")
        size = content_range.removeprefix("bytes */")
        self.size = int(size) if size.isdecimal() else None
        """The size of the whole file in bytes. None if the server does not state it."""


class PermanentFailure(Exception):
    """The server refuses to send the file or does not have it. A retry cannot succeed.

    The message continues a sentence that starts with the address. An example is "requires a login".
    """


def check_address(url: str) -> None:
    """Raise UserError if the address does not use https and is not on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        raise UserError(
            f"{url} is not an https address: other connections are not protected against changes of the file; give an"
            " address that starts with https://"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def open_response(url: str, start: int, validator: str) -> http.client.HTTPResponse:
    """Request a file from byte `start` on and return the open response.

    If a part of the file was downloaded before, `validator` is the ETag or date from that response. If not, it is "".
    If the file has changed since then, the server sends the whole file. Raises PermanentFailure if a retry cannot
    succeed, and TemporaryFailure if it may succeed.
    """
    headers = {"User-Agent": f"robustbench_vlm/{__version__}"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
        return response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise RangeNotSatisfiable(error.headers.get("Content-Range", "")) from error
            if error.code not in _TEMPORARY:
                raise PermanentFailure(_explain_status(error.code)) from error
            raise TemporaryFailure(f"the server returns the status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise PermanentFailure(
                f"has an invalid certificate ({error.reason.verify_message}): the connection may be intercepted, so"
                " nothing was downloaded; check your network and the date of this machine, or try again later"
            ) from error
        raise TemporaryFailure(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryFailure(str(error) or type(error).__name__) from error


def _explain_status(code: int) -> str:
    moved = "does not exist any more: check on the page of the paper whether the file has moved"
    reasons = {
        401: "requires a login: open it in a browser and log in",
        403: "requires a login or a licence agreement: open it in a browser and follow its instructions",
        404: moved,
        410: moved,
    }
    return reasons.get(code, f"was refused by the server with the status {code}: open it in a browser")


def read_chunk(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes of a response. At its end, return b"". Raises TemporaryFailure if the connection breaks."""
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryFailure(str(error) or type(error).__name__) from error
