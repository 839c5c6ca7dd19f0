"""Fixtures: servers on the loopback address, and the path of a download."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback_server import Reply, Server

from robustbench_vlm.core import download as downloads


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "*")
    servers: list[Server] = []

    def start(*replies: Reply) -> Server:
        servers.append(Server(*replies))
        return servers[-1]

    yield start
    for each in servers:
        each.server.shutdown()
        each.server.server_close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "weights.pt"
