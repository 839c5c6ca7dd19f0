"""Fixtures for the tests of datasets."""

from collections.abc import Iterator

import pytest
from hub_server import Server

from robustbench_vlm.core import download as downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "*")
    served = Server()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    yield served
    served.server.shutdown()
    served.server.server_close()
