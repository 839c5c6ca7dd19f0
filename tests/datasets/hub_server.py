"""A local web server for tests: it serves files and the Hugging Face Hub's file list, and can be made to fail."""

import contextlib
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """A local web server with files and the Hub's file list. `faults` has the next responses of a path that fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lists: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, list[Callable[[http.server.BaseHTTPRequestHandler, bytes], None]]] = {}
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        self.asked.append((path, handler.headers.get("Range", "")))
        content = json.dumps(self.lists[path]).encode() if path in self.lists else self.files.get(path)
        if content is None:
            handler.send_error(404)
        elif self.faults.get(path):
            self.faults[path].pop(0)(handler, content)
        else:
            send(handler, content)

    def asked_for(self, end: str) -> list[str]:
        return [ranges for path, ranges in self.asked if path.endswith(end)]

    def add_hub(self, folder: Path, repository: str, revision: str = REVISION) -> None:
        """Add the shards in a folder to the Hub repository, as its current revision."""
        siblings: list[dict[str, Any]] = [{"rfilename": "README.md", "size": 3, "blobId": "0" * 40}]
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                self.files[f"/datasets/{repository}/resolve/{revision}/{name}"] = content
                entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
                if path.suffix == ".tar":
                    entry["lfs"] = {
                        "sha256": hashlib.sha256(content).hexdigest(),
                        "size": len(content),
                        "pointerSize": 130,
                    }
                siblings.append(entry)
        self.lists[f"/api/datasets/{repository}/revision/main"] = self.lists[f"/api/datasets/{repository}"] = {
            "id": repository,
            "sha": revision,
            "siblings": siblings,
            "private": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }


def send(handler: http.server.BaseHTTPRequestHandler, content: bytes, stop: int | None = None, then: float = 0) -> None:
    """Send a file from the start of the requested range to byte `stop`, then wait `then` seconds and close."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.send_header("Content-Type", "application/json" if content[:1] == b"{" else "application/octet-stream")
    handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(content[start:stop])
        handler.wfile.flush()
        time.sleep(then)


def broken_off(stop: int, then: float = 0) -> Callable[[http.server.BaseHTTPRequestHandler, bytes], None]:
    return lambda handler, content: send(handler, content, stop, then)


def lie(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    send(handler, bytes(len(content)))


def page(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
    send(handler, b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>")
