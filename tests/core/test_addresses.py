"""Addresses from files of other people: private hosts are refused before a request, unless the user allows them."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core import addresses
from robustbench_vlm.core.addresses import check_address, check_connected
from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hosts import Hosts

SECRET = b"<html><title>admin page of the private network</title></html>"


class Internal(http.server.BaseHTTPRequestHandler):
    """A service in a private network: it records requests, and redirects "/other" to another address of the machine."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/other":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/secret")  # type: ignore[attr-defined]
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(SECRET)))
        self.end_headers()
        self.wfile.write(SECRET)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def internal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Return the address of a service on this machine, and the list of its requests. No host is allowed."""
    monkeypatch.delenv("VLMBENCH_ALLOWED_HOSTS")
    monkeypatch.setenv("NO_PROXY", "*")
    handler = type("Given", (Internal,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "10.0.0.1", "192.168.1.1", "172.16.0.1"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "localhost", "LOCALHOST", "a.localhost", "printer.local"),
    ],
)
def test_private_hosts_are_refused(host: str, internal: tuple[str, list[str]]) -> None:
    for url in (f"https://{host}/weights.pt", f"https://user:word@{host}:8443/weights.pt"):
        with pytest.raises(UserError, match="a private network: give a public https address, or allow the host with"):
            check_address(url)


@pytest.mark.parametrize("url", ["https://8.8.8.8/a", "https://[2606:4700::1111]/a"])
def test_public_addresses_are_accepted(url: str, internal: tuple[str, list[str]]) -> None:
    check_address(url)
    with pytest.raises(UserError, match="is not an https address"):
        check_address(url.replace("https", "http"))


def test_a_name_that_resolves_to_a_private_address_is_refused(
    internal: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"one.example": ["8.8.8.8"], "two.example": ["8.8.8.8", "10.0.0.1"], "three.example": ["::1"]}

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, port)) for place in places[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    addresses._resolves_to_private.cache_clear()
    check_address("https://one.example/a")
    for host in ("two.example", "three.example"):
        with pytest.raises(UserError, match="a private network"):
            check_address(f"https://{host}/a")
    addresses._resolves_to_private.cache_clear()
    # The name resolves to another address when the connection is made.
    with pytest.raises(UserError, match="a private network"):
        check_connected("https://one.example/a", "10.0.0.1")
    check_connected("https://one.example/a", "8.8.8.8")
    monkeypatch.setenv("VLMBENCH_ALLOWED_HOSTS", "other.example, TWO.example")
    check_address("https://two.example/a")
    check_connected("https://two.example/a", "10.0.0.1")


def test_no_request_reaches_a_service_on_this_machine(internal: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = internal
    for text in (f"{url}/a", f"{url.replace('http', 'https')}/a", f"{url.replace('127.0.0.1', 'localhost')}/a"):
        with pytest.raises(UserError, match="a private network") as caught:
            download(text, tmp_path / "a")
        assert "admin page" not in str(caught.value)
        with pytest.raises(UserError, match="a private network"):
            Hosts().unreachable([text])
    assert not asked


def test_a_redirect_to_a_private_address_is_refused(
    internal: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = internal
    monkeypatch.setenv("VLMBENCH_ALLOWED_HOSTS", "127.0.0.1")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.2:.* a private network"):
        download(f"{url}/other", tmp_path / "a")
    with pytest.raises(UserError, match="returned a web page"):
        download(f"{url}/a", tmp_path / "a")
    assert asked == ["/other", "/a"]


def test_a_card_cannot_reach_a_service_on_this_machine(
    internal: tuple[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, asked = internal
    for address in (f"{url}/w.pt", f"{url.replace('http', 'https')}/w.pt"):
        image = {"file": "w.pt", "sha256": "", "url": address}
        card = {"name": "mine", "architecture": "mini", "base": "clip", "image": image}
        (tmp_path / "mine.json").write_text(json.dumps(card))
        assert run_command(["check", "model", str(tmp_path / "mine.json"), "--track", "mini"]) == 2
        assert "VLMBENCH_ALLOWED_HOSTS=127.0.0.1" in capsys.readouterr().err
    assert not asked
