"""The site on this machine alone, for browsers that are to see it over http."""

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from robustbench_vlm.core.errors import UserError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a site's folder on the loopback interface; port 0 takes a free one.

    Raises UserError where the folder has no site, or the port is not free.
    """
    if not (folder / "index.html").is_file():
        raise UserError(f"there is no site in {folder}: `vlmbench leaderboard build` writes one")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on port {port}: {error}; give another --port, 0 takes a free one") from error


def serve(folder: Path, port: int) -> None:
    """Serve a site's folder on the loopback interface until Ctrl-C; raises what `open_server` does."""
    with open_server(folder, port) as server:
        server.serve_forever()
