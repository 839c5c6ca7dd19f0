"""Local HTTP server of the leaderboard site, on the loopback interface only."""

import contextlib
import functools
import io
from collections.abc import Callable
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from robustbench_vlm.core.errors import UserError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Ignore the log message of a request."""

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Send the headers of the response and return the opened file. Answer 404 for a path that no file can have."""
        try:
            return super().send_head()
        # A null byte in a path raises a ValueError, and a path that is too long raises an OSError.
        except (ValueError, OSError):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return an HTTP server for the folder of a site, on the loopback interface. Port 0 selects a free port.

    Raises UserError if the folder is not a site or the port is in use.
    """
    if not (folder / "index.html").is_file():
        raise UserError(
            f"{folder} lacks the file index.html, so it is not a site: run `vlmbench leaderboard build --site {folder}`"
        )
    return _listening_server(folder, port)


def _listening_server(folder: Path, port: int) -> ThreadingHTTPServer:
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on port {port}: {error}; give another port with --port, or give 0 to use a free port"
        ) from error


def serve(folder: Path, port: int, build: Callable[[], None], on_open: Callable[[str], None]) -> None:
    """Build a site in a folder and serve it on the loopback interface until Ctrl-C.

    The port is opened first, and `on_open` is called with the address. A browser that asks for a page while `build`
    writes the site gets its answer when the site is ready. Raises UserError if the port is in use.
    """
    with _listening_server(folder, port) as server, contextlib.suppress(KeyboardInterrupt):
        on_open(f"http://127.0.0.1:{server.server_address[1]}")
        build()
        server.serve_forever()
