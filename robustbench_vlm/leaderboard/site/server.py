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
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on port {port}: {error}; give another port with --port, or give 0 to use a free port"
        ) from error


def serve(folder: Path, port: int, on_open: Callable[[str], None] = lambda address: None) -> None:
    """Serve a site's folder on the loopback interface until Ctrl-C.

    `on_open` is called with the address of the site. Raises the errors of `open_server`.
    """
    with open_server(folder, port) as server, contextlib.suppress(KeyboardInterrupt):
        on_open(f"http://127.0.0.1:{server.server_address[1]}")
        server.serve_forever()
