"""HTTP requests: https only; temporary failures (`Dropped`) are distinguished from final ones (`Refused`)."""

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
"""Seconds without a byte after which a connection is treated as dropped."""
_CHUNK = 1 << 20
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class Dropped(Exception):
    """A response that broke off or never came; another attempt may succeed."""


class Missing(Dropped):
    """The server has no such part of the file."""

    def __init__(self, content_range: str) -> None:
        super().__init__("the server has no such part of the file")
        size = content_range.removeprefix("bytes */")
        self.size = int(size) if size.isdecimal() else None
        """Bytes of the whole file; None if the server does not say."""


class Refused(Exception):
    """A final failure; its text continues a sentence that begins with the address."""


def check_address(url: str) -> None:
    """Raise UserError unless the address is https or on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        raise UserError(f"{url} is no https address: what comes over anything else may be changed on its way")


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


def ask(url: str, start: int, validator: str) -> http.client.HTTPResponse:
    """Request a file from byte `start` on and return the response.

    `validator` is the ETag or date of the part that is already here; if the file has changed, the server sends the
    whole file. Raises Refused for a final failure, and Dropped if another attempt may succeed.
    """
    headers = {"User-Agent": f"robustbench_vlm/{__version__}"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
        return answer
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise Missing(error.headers.get("Content-Range", "")) from error
            if error.code not in _TEMPORARY:
                raise Refused(_refusal(error.code)) from error
            raise Dropped(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(
                f"has a certificate that does not hold ({error.reason.verify_message}): somebody may stand between you"
                " and the server, so nothing was fetched; try again another day"
            ) from error
        raise Dropped(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(str(error) or type(error).__name__) from error


def _refusal(code: int) -> str:
    reasons = {
        401: "wants a login: open it in a browser and log in",
        403: "may not be fetched without a login or a licence: open it in a browser and see what it wants",
        404: "is not there any more: see on the page of the paper whether the file has moved",
        410: "is not there any more: see on the page of the paper whether the file has moved",
    }
    return reasons.get(code, f"was refused by the server with the code {code}")


def read(answer: http.client.HTTPResponse) -> bytes:
    """Return the next bytes of a response, b"" at its end; raise Dropped if the connection breaks."""
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(str(error) or type(error).__name__) from error
