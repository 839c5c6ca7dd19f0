"""The Hugging Face hub: the login is sent only to it, its digests are checked, and its refusals are explained."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from loopback_server import CONTENT, DIGEST, Handler, Server, code, whole
from made_up_hub import served

from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hub_access import hub_url

Serve = Callable[..., Server]
TOKEN = "hf_" + "x" * 20


def host(server: Server) -> str:
    return server.url.removesuffix("/file.bin")


@pytest.fixture
def hub(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    """Return a function that starts a hub with the given replies. A login is stored."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def start(*replies: Callable[[Handler], None]) -> Server:
        server = serve(*replies)
        monkeypatch.setenv("HF_ENDPOINT", host(server))
        return server

    return start


def tokens(server: Server) -> list[str | None]:
    return [request.get("Authorization") for request in server.asked]


def test_the_login_is_sent_to_the_hub_and_not_to_other_hosts(hub: Serve, serve: Serve, path: Path) -> None:
    storage = serve(whole)
    first = hub(code(302, Location=storage.url))
    assert download(hub_url("o/n", "a.pt"), path) == DIGEST
    assert tokens(first) == [f"Bearer {TOKEN}"], "the hub gets the login"
    assert tokens(storage) == [None], "a redirect to another host does not get the login"
    path.unlink()
    other = serve(code(302, Location=f"{host(first)}/o/n/resolve/main/a.pt"))
    first.asked.clear()
    assert download(other.url, path) == DIGEST
    assert tokens(other) == [None] and tokens(first) == [None], "another host cannot make us send the login"


def test_a_redirect_within_the_hub_keeps_the_login(hub: Serve, path: Path) -> None:
    server = hub(code(307, Location="/new/name/resolve/main/a.pt"), whole)
    assert download(hub_url("o/n", "a.pt"), path) == DIGEST
    assert tokens(server) == [f"Bearer {TOKEN}"] * 2


def test_a_stored_login_is_read(hub: Serve, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    server = hub(whole)
    download(hub_url("datasets/o/n", "a.tar"), path)
    assert tokens(server) == ["Bearer stored"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    path.unlink()
    download(hub_url("datasets/o/n", "a.tar"), path)
    assert tokens(server)[1] is None


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (401, "GatedRepo", r"requires permission: ask for access on {host}/o/n, then log in with `hf auth login`, or"),
        (403, "GatedRepo", r"ask for access on {host}/o/n, then log in with `hf auth login`, or set HF_TOKEN"),
        (401, "RepoNotFound", r"is private: check the name on {host}/o/n; if it is private, log in"),
        (404, "RevisionNotFound", r"check the revision on {host}/o/n"),
        (403, "", r"requires a login: log in with `hf auth login`, or set HF_TOKEN"),
        (404, "EntryNotFound", r"does not exist any more"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(status: int, reason: str, message: str, hub: Serve, path: Path) -> None:
    server = hub(code(status, X_Error_Code=reason))
    with pytest.raises(UserError, match=message.format(host=host(server))) as error:
        download(hub_url("o/n", "a.pt"), path)
    assert TOKEN not in str(error.value) and len(server.asked) == 1


def test_the_digest_that_the_hub_states_is_checked(hub: Serve, serve: Serve, path: Path) -> None:
    def stated(digest: str) -> Callable[[Handler], None]:
        return code(302, Location=storage.url, X_Linked_ETag=f'"{digest}"')

    storage = serve(whole)
    hub(stated(DIGEST))
    assert download(hub_url("o/n", "a.pt"), path) == DIGEST
    path.unlink()
    hub(stated("0" * 64))
    with pytest.raises(UserError, match=f"sha256 {DIGEST}, expected {'0' * 64}"):
        download(hub_url("o/n", "a.pt"), path)
    assert not path.exists()
    # The digest of the card differs from the digest on the hub: the file is not downloaded.
    hub(stated(DIGEST))
    with pytest.raises(UserError, match=f"sha256 {DIGEST}, expected {'1' * 64}"):
        download(hub_url("o/n", "a.pt"), path, sha256="1" * 64)
    assert not path.with_name("weights.pt.partial").exists()
    # Small files have a git digest, which is not a sha256. Other hosts cannot state a digest.
    hub(code(302, Location=storage.url, X_Linked_ETag='"' + "a" * 40 + '"'))
    assert download(hub_url("o/n", "a.pt"), path) == DIGEST
    path.unlink()
    assert download(serve(code(302, Location=storage.url, X_Linked_ETag='"' + "0" * 64 + '"')).url, path) == DIGEST


def test_the_stated_digest_is_kept_for_a_resumed_download(hub: Serve, path: Path) -> None:
    other = CONTENT[::-1]
    stated = hashlib.sha256(CONTENT).hexdigest()

    def first(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(CONTENT), ETag='"one"', X_Linked_ETag=f'"{stated}"')
        handler.wfile.write(other[:1_000_000])

    # The rest of the file comes without a digest, and the whole file does not have the stated one.
    server = hub(first, whole, whole)
    assert download(hub_url("o/n", "a.pt"), path) == DIGEST
    assert server.ranges[:2] == ["", "bytes=1000000-"]


FETCH = """
import sys, time
from huggingface_hub import hf_hub_download
from robustbench_vlm.core.hub_access import with_hub_files
began = time.monotonic()
try:
    print(with_hub_files("the file", lambda: hf_hub_download("org/clip", "config.json")))
except ValueError as error:
    print(error)
print(time.monotonic() - began)
"""


def fetch(program: str, address: str, home: Path, **variables: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), "NO_PROXY": "*", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"VLMBENCH_CACHE": str(home / "cache"), **variables}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def test_libraries_fetch_into_the_cache_of_vlmbench_and_read_it_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "site" / "org" / "clip").mkdir(parents=True)
    (tmp_path / "site" / "org" / "clip" / "config.json").write_text(json.dumps({"a": 1}))
    with served(tmp_path / "site") as address:
        path, _ = fetch(FETCH, address, tmp_path)
    assert Path(path).is_relative_to(tmp_path / "cache" / "hub") and json.loads(Path(path).read_text()) == {"a": 1}
    assert not (tmp_path / "hf" / "hub").exists(), "no second cache"
    again, _ = fetch(FETCH, address, tmp_path)
    assert again == path, "the hub is gone, the cache is read"


def test_without_a_network_the_message_comes_within_seconds(tmp_path: Path) -> None:
    message, seconds = fetch(FETCH, "http://127.0.0.1:9", tmp_path)
    assert message.startswith("the file is not in the cache, and it cannot be downloaded (cannot reach 127.0.0.1")
    assert "hf download" in message and float(seconds) < 6
    message, seconds = fetch(FETCH, "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set: unset it" in message and float(seconds) < 6


def test_an_error_that_is_not_a_missing_file_is_not_hidden() -> None:
    from robustbench_vlm.core.hub_access import with_hub_files

    calls = []

    def load() -> None:
        calls.append(1)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        with_hub_files("the file", load)
    assert len(calls) == 1


def test_a_download_from_the_hub_respects_the_offline_mode(
    hub: Serve, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub(whole)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"a\.pt is not in the cache, and HF_HUB_OFFLINE is set"):
        download(hub_url("o/n", "a.pt"), path)
    assert not server.asked


def test_a_host_that_cannot_be_reached_is_tried_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"cannot be downloaded: 127\.0\.0\.1 cannot be reached \(.*refused\); try again later"
    ):
        download("http://127.0.0.1:9/a", path)
    assert time.monotonic() - began < 4
