"""HTTP requests over https. A retry may succeed after a `TemporaryFailure`, but not after a `PermanentFailure`."""

import contextlib
import email.utils
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from robustbench_vlm import __version__
from robustbench_vlm.core.addresses import check_address, check_connected
from robustbench_vlm.core.errors import UserError

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

TIMEOUT = 30.0
"""Timeout in seconds. If a connection receives no data for this time, it counts as broken."""
CONNECT_TIMEOUT = 5.0
"""Timeout in seconds. If a host does not accept a connection in this time, it counts as unreachable."""
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_LONGEST = 1e9
"""The longest wait in seconds that is accepted from a server. A longer wait is shortened to this value, because the
clock cannot represent a time too far in the future.
"""
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Environment variables for the path of a file with trusted certificates. The first variable that is set is used."""


class TemporaryFailure(Exception):
    """The connection broke, the server did not respond, or it reported a temporary error. A retry may succeed."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait
        """Seconds that the server asks to wait before the next request. 0 if the server does not state a wait."""


class Unreachable(TemporaryFailure):
    """No connection to the host could be made."""


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


class Refused(PermanentFailure):
    """The server refuses to send the file."""

    def __init__(self, response: "Response") -> None:
        super().__init__(_explain_status(response.status_code))
        self.url = str(response.url)
        """The address that refused the request, after all redirects."""
        self.status = response.status_code
        """The HTTP status."""
        self.headers: Mapping[str, str] = response.headers
        """The headers of the response."""


@contextlib.contextmanager
def open_response(url: str, start: int, validator: str, headers: Mapping[str, str]) -> Iterator["Response"]:
    """Request a file from byte `start` on and yield the open response.

    `iter_raw` of the response returns the bytes of the file. Each redirect must pass `check_address`.

    Args:
        url: The address of the file.
        start: The first byte to request.
        validator: The ETag or date that the server sent with an already downloaded part of the file. "" if no part was
            downloaded. If the file has changed since then, the server sends the whole file.
        headers: Additional request headers. After a redirect to another host, the header Authorization is not sent.

    Raises:
        PermanentFailure: A retry cannot succeed.
        TemporaryFailure: A retry may succeed. This error is also raised if the connection breaks while the response is
            read.
    """
    from httpx2 import ConnectError, ConnectTimeout, InvalidURL, RequestError, TimeoutException

    # The server must not compress the file, because the number of received bytes is compared with the size of the file.
    sent = {"User-Agent": f"robustbench_vlm/{__version__}", "Accept-Encoding": "identity", **headers}
    if start:
        sent |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        with _client() as client, client.stream("GET", url, headers=sent) as response:
            _check_status(response)
            yield response
    except (ConnectError, ConnectTimeout) as error:
        _check_certificate(error)
        reason = str(error) or f"no connection within {CONNECT_TIMEOUT:.0f} seconds"
        raise Unreachable(f"{error.request.url.host} cannot be reached ({reason})") from error
    except TimeoutException as error:
        raise TemporaryFailure(f"timed out after {TIMEOUT:g} seconds without data") from error
    except RequestError as error:
        raise TemporaryFailure(f"the connection broke off: {str(error) or type(error).__name__}") from error
    except (InvalidURL, UnicodeError) as error:
        raise PermanentFailure(f"is not a valid address ({error}): check the address") from error


def _client() -> "Client":
    from httpx2 import Client, Timeout

    def check_request(request: "Request") -> None:
        check_address(str(request.url))

    def check_response(response: "Response") -> None:
        stream = response.extensions.get("network_stream")
        address = stream.get_extra_info("server_addr") if stream else None
        if address:
            check_connected(str(response.url), str(address[0]))

    return Client(
        event_hooks={"request": [check_request], "response": [check_response]},
        follow_redirects=True,
        timeout=Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
        verify=_trusted_certificates(),
    )


def _trusted_certificates() -> ssl.SSLContext | bool:
    """Return the certificates in the first variable of `_CERTIFICATES` that is set.

    If no variable is set, return True, which selects the default certificates.
    """
    for variable in _CERTIFICATES:
        if path := os.environ.get(variable):
            try:
                folder = path if os.path.isdir(path) else None  # noqa: PTH112
                return ssl.create_default_context(cafile=None if folder else path, capath=folder)
            except OSError as error:
                raise UserError(
                    f"{variable} is {path!r}, which cannot be read as certificates ({error}): set it to a file with"
                    " certificates in PEM format, or unset it"
                ) from error
    return True


def _check_status(response: "Response") -> None:
    status = response.status_code
    if response.is_success:
        return
    if status == 416:
        raise RangeNotSatisfiable(response.headers.get("Content-Range", ""))
    if status not in _TEMPORARY:
        raise Refused(response)
    reason = f"the server returns the status {status} {response.reason_phrase}".rstrip()
    raise TemporaryFailure(reason, _requested_wait(response.headers) if status in (429, 503) else 0.0)


def _requested_wait(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait. Return 0 if the headers do not state a wait.

    The first of these headers that the response has is used:

    * Retry-After: seconds or a date (RFC 9110).
    * RateLimit: the seconds are the number after "t=". The Hugging Face hub sends for example "api";r=0;t=55.
    * RateLimit-Reset: seconds.
    """
    after = headers.get("Retry-After", "").strip()
    limit = re.search(r";\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    seconds = 0.0
    if given := [text for text in (after, limit[1] if limit else "", headers.get("RateLimit-Reset", "")) if text]:
        with contextlib.suppress(ValueError):
            seconds = float(given[0]) if given[0].isdecimal() else _seconds_until(given[0], headers.get("Date", ""))
    return min(seconds, _LONGEST)


def _seconds_until(date: str, now: str) -> float:
    """Return the seconds until an HTTP date. `now` is the current date on the server's clock, or "" if unknown."""
    began = email.utils.parsedate_to_datetime(now).timestamp() if now else time.time()
    return max(email.utils.parsedate_to_datetime(date).timestamp() - began, 0.0)


def _check_certificate(error: BaseException | None) -> None:
    """Raise PermanentFailure if an error was caused by an invalid certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            raise PermanentFailure(
                f"has an invalid certificate ({error.verify_message}), so nothing was downloaded: if your company's"
                " proxy opens https connections, set SSL_CERT_FILE to a file with the proxy's certificate; if not, the"
                " connection may be intercepted, so check your network and the date of this machine"
            ) from error
        error = error.__cause__ or error.__context__


def _explain_status(code: int) -> str:
    moved = "does not exist any more: check on the page of the paper whether the file has moved"
    reasons = {
        401: "requires a login: open it in a browser and log in",
        403: "requires a login or a licence agreement: open it in a browser and follow its instructions",
        404: moved,
        410: moved,
    }
    return reasons.get(code, f"was refused by the server with the status {code}: open it in a browser")
