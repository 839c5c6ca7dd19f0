"""Servers on the loopback address that are slow, break off, lie, redirect or limit requests."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable
from typing import Any

CONTENT = b"".join(number.to_bytes(4, "big") for number in range(750_000))
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"
Reply = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Handle each request with the next of the test's replies; the last reply is repeated."""

    replies: list[Reply]
    asked: list[dict[str, str]]

    def do_GET(self) -> None:
        self.asked.append({"path": self.path, **dict(self.headers.items())})
        (self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def begin(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def whole(handler: Handler, content: bytes = CONTENT, stop: int | None = None, tag: str = '"one"') -> None:
    """Send a file from the requested start up to byte `stop`, with the length of the whole file in the header."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if handler.headers.get("If-Range", tag) != tag:
        start = 0
    part = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    handler.begin(206 if start else 200, Content_Length=len(content) - start, ETag=tag, **part)
    handler.wfile.write(content[start:stop])


def no_range(handler: Handler, stop: int | None = None) -> None:
    handler.begin(200, Content_Length=len(CONTENT), ETag='"one"')
    handler.wfile.write(CONTENT[:stop])


def page(handler: Handler) -> None:
    handler.begin(200, Content_Length=len(PAGE), Content_Type="text/html; charset=utf-8")
    handler.wfile.write(PAGE)


def cut(stop: int, **values: Any) -> Reply:
    return functools.partial(whole, stop=stop, **values)


def code(number: int, **headers: object) -> Reply:
    return lambda handler: handler.begin(number, Content_Length=0, **headers)


class Server:
    """A server on the loopback address; `asked` has the headers of each request."""

    def __init__(self, *replies: Reply) -> None:
        handler = type("Given", (Handler,), {"replies": list(replies), "asked": []})
        self.asked: list[dict[str, str]] = handler.asked  # type: ignore[attr-defined]
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def ranges(self) -> list[str]:
        return [request.get("Range", "") for request in self.asked]
