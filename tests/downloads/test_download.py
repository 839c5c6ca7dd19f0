"""Downloads from real servers on the loopback address that are slow, break off, lie or redirect."""

import functools
import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from loopback_server import CONTENT, DIGEST, PAGE, Handler, Server, code, cut, no_range, whole

from robustbench_vlm.core import download as downloads
from robustbench_vlm.core import http as requests
from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.hub_access import hub_url


def left(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir()) if path.parent.exists() else []


def test_a_download_leaves_no_other_files(serve: Callable[..., Server], path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    url = serve(whole).url
    assert download(url, path, on_progress=lambda progress: told.append((progress.done, progress.total))) == DIGEST
    assert path.read_bytes() == CONTENT and left(path) == ["weights.pt"]
    assert told[-1] == (len(CONTENT), len(CONTENT)) and [here for here, _ in told] == sorted(here for here, _ in told)


def test_an_existing_file_is_checked_and_not_downloaded_again(serve: Callable[..., Server], path: Path) -> None:
    server = serve(whole)
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert download(server.url, path, sha256=DIGEST, size=len(CONTENT)) == download(server.url, path) == DIGEST
    for wrong in ({"sha256": "0" * 64}, {"size": 7}):
        with pytest.raises(UserError, match="move or delete it"):
            download(server.url, path, **wrong)  # type: ignore[arg-type]
    assert not server.asked and path.read_bytes() == CONTENT


def test_a_download_resumes_after_a_broken_connection(serve: Callable[..., Server], path: Path) -> None:
    server = serve(cut(1_200_000), cut(2_000_000), whole)
    assert download(server.url, path, sha256=DIGEST) == DIGEST
    assert server.ranges == ["", "bytes=1200000-", "bytes=2000000-"] and left(path) == ["weights.pt"]


def test_a_later_call_resumes_a_failed_download(serve: Callable[..., Server], path: Path) -> None:
    server = serve(cut(1_200_000), *[code(503)] * 4, whole)
    with pytest.raises(UserError, match=f"cannot be downloaded: the server returns the status 503.*save it as {path}"):
        download(server.url, path)
    assert not path.exists() and "weights.pt.partial" in left(path)
    assert download(server.url, path) == DIGEST
    assert server.ranges[-1] == "bytes=1200000-" and server.asked[-1]["If-Range"] == '"one"'
    assert left(path) == ["weights.pt"]


def test_a_server_without_range_support_sends_the_whole_file_again(serve: Callable[..., Server], path: Path) -> None:
    server = serve(functools.partial(no_range, stop=1_500_000), no_range)
    assert download(server.url, path) == DIGEST
    assert server.ranges == ["", "bytes=1500000-"]


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(
    serve: Callable[..., Server], path: Path
) -> None:
    server = serve(cut(1_200_000, tag='"old"', content=CONTENT[::-1]), whole)
    assert download(server.url, path) == DIGEST
    assert server.asked[1]["If-Range"] == '"old"'


def test_a_partial_file_of_unknown_or_other_origin_is_not_resumed(serve: Callable[..., Server], path: Path) -> None:
    path.parent.mkdir()
    partial, origin = (path.with_name(f"weights.pt.{suffix}") for suffix in ("partial", "partial.origin"))
    for note in (None, 'http://127.0.0.1:1/other\n"one"', "{url}\n"):
        server = serve(whole)
        partial.write_bytes(b"other")
        if note:
            origin.write_text(note.format(url=server.url))
        assert download(server.url, path) == DIGEST and server.ranges == [""]
        path.unlink()


def test_a_wrong_digest_after_a_resume_restarts_the_download(serve: Callable[..., Server], path: Path) -> None:
    server = serve(cut(1_200_000), functools.partial(whole, content=bytes(len(CONTENT))), whole)
    assert download(server.url, path, sha256=DIGEST) == DIGEST
    assert server.ranges == ["", "bytes=1200000-", ""]


def test_a_file_with_a_wrong_digest_is_deleted(serve: Callable[..., Server], path: Path) -> None:
    server = serve(whole)
    with pytest.raises(UserError, match=f"sha256 {DIGEST}, expected {'0' * 64}"):
        download(server.url, path, sha256="0" * 64)
    assert len(server.asked) == 1 and left(path) in ([], [".weights.pt.lock"])


def test_a_response_with_a_different_range_is_refused(serve: Callable[..., Server], path: Path) -> None:
    def shifted(handler: Handler) -> None:
        handler.begin(206, Content_Length=5, Content_Range=f"bytes 7-11/{len(CONTENT)}")
        handler.wfile.write(b"wrong")

    server = serve(cut(1_200_000), shifted, whole)
    assert download(server.url, path) == DIGEST
    assert server.ranges == ["", "bytes=1200000-", ""]


def test_a_partial_file_longer_than_the_file_is_discarded(serve: Callable[..., Server], path: Path) -> None:
    server = serve(code(416), whole)
    path.parent.mkdir()
    path.with_name("weights.pt.partial").write_bytes(bytes(len(CONTENT) + 1))
    path.with_name("weights.pt.partial.origin").write_text(f'{server.url}\n"one"')
    assert download(server.url, path) == DIGEST
    assert server.ranges == [f"bytes={len(CONTENT) + 1}-", ""]


def test_a_complete_partial_file_is_accepted(serve: Callable[..., Server], path: Path) -> None:
    def beyond(handler: Handler) -> None:
        handler.begin(416, Content_Length=0, Content_Range=f"bytes */{len(CONTENT)}")

    server = serve(beyond, beyond)
    path.parent.mkdir()
    for digest in (DIGEST, ""):
        path.with_name("weights.pt.partial").write_bytes(CONTENT)
        path.with_name("weights.pt.partial.origin").write_text(f'{server.url}\n"one"')
        assert download(server.url, path, sha256=digest) == DIGEST
        assert path.read_bytes() == CONTENT
        path.unlink()
    assert server.ranges == [f"bytes={len(CONTENT)}-"] * 2


def test_fewer_bytes_than_the_stated_length_are_refused(serve: Callable[..., Server], path: Path) -> None:
    def lying(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(CONTENT) + 5)
        handler.wfile.write(CONTENT)

    with pytest.raises(UserError, match=rf"received {len(CONTENT)} bytes, expected {len(CONTENT) + 5}"):
        download(serve(lying).url, path)
    assert not path.exists()


def test_a_stated_length_that_is_too_short_is_detected_by_size_or_digest(
    serve: Callable[..., Server], path: Path
) -> None:
    def lying(handler: Handler) -> None:
        handler.begin(200, Content_Length=100)
        handler.wfile.write(CONTENT)

    with pytest.raises(UserError, match="a file of 100 bytes, expected 3000000"):
        download(serve(lying).url, path, size=len(CONTENT))
    with pytest.raises(UserError, match="sha256"):
        download(serve(lying).url, path, sha256=DIGEST)
    assert not path.exists()


def test_chunked_responses_without_an_end_are_refused(serve: Callable[..., Server], path: Path) -> None:
    def chunked(handler: Handler, *, end: bytes = b"") -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.begin(200, Transfer_Encoding="chunked")
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT) + end)

    with pytest.raises(UserError, match="cannot be downloaded"):
        download(serve(chunked).url, path)
    assert download(serve(functools.partial(chunked, end=b"0\r\n\r\n")).url, path) == DIGEST


def test_a_response_without_a_length_needs_a_size_or_digest(serve: Callable[..., Server], path: Path) -> None:
    def closing(handler: Handler, *, stop: int | None = None) -> None:
        handler.begin(200)
        handler.wfile.write(CONTENT[:stop])

    for stop in (None, 1000):
        with pytest.raises(
            UserError, match=r"the size of the file.*download the file manually and save it as .*weights\.pt"
        ):
            download(serve(functools.partial(closing, stop=stop)).url, path)
        assert not path.exists()
    with pytest.raises(UserError, match="sha256"):
        download(serve(functools.partial(closing, stop=1000)).url, path, sha256=DIGEST)
    for known in ({"sha256": DIGEST}, {"size": len(CONTENT)}):
        assert download(serve(closing).url, path, **known) == DIGEST
        path.unlink()


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_a_web_page_instead_of_a_file_is_refused(kind: str, serve: Callable[..., Server], path: Path) -> None:
    def disguised(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(PAGE), Content_Type=kind)
        handler.wfile.write(PAGE)

    with pytest.raises(UserError, match=r"a web page with the title 'Google Drive - Virus.*save it as .*weights.pt"):
        download(serve(disguised).url, path)
    assert not path.exists() and "weights.pt.partial" not in left(path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (404, "does not exist any more"),
        (410, "does not exist"),
        (403, "licence"),
        (401, "log in"),
        (418, "with the status 418"),
    ],
)
def test_a_refused_request_is_not_repeated_and_its_message_says_what_to_do(
    number: int, message: str, serve: Callable[..., Server], path: Path
) -> None:
    server = serve(code(number))
    with pytest.raises(UserError, match=f"{message}.*manually and save it as {path}"):
        download(server.url, path)
    assert len(server.asked) == 1


def test_redirects_are_followed_only_to_https(serve: Callable[..., Server], path: Path) -> None:
    target = serve(whole).url
    assert download(serve(code(302, Location=target)).url, path) == DIGEST
    path.unlink()
    for unsafe in ("http://example.com/file.bin", "ftp://127.0.0.1/file.bin"):
        with pytest.raises(UserError, match="is not an https address"):
            download(serve(code(302, Location=unsafe)).url, path)
    assert not path.exists()


@pytest.mark.parametrize("url", ["http://example.com/a", "file:///etc/passwd", "ftp://h/a", "https:///a", "a.pt", ""])
def test_addresses_without_https_are_refused(url: str, path: Path) -> None:
    with pytest.raises(UserError, match="is not an https address"):
        download(url, path)


def test_a_server_that_sends_nothing_times_out(
    serve: Callable[..., Server], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "TIMEOUT", 0.1)
    released = threading.Event()

    def silent(handler: Handler) -> None:
        handler.begin(200, Content_Length=10)
        released.wait(20)

    with pytest.raises(UserError, match="timed out"):
        download(serve(silent).url, path)
    released.set()


def test_a_slow_server_does_not_time_out(
    serve: Callable[..., Server], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "TIMEOUT", 1.0)

    def slow(handler: Handler) -> None:
        handler.begin(200, Content_Length=20)
        for _ in range(20):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.06)

    assert download(serve(slow).url, path) == hashlib.sha256(b"x" * 20).hexdigest()


def test_a_server_that_cannot_be_reached_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "WAITS", (0.0,))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="refused"):
        download(f"http://127.0.0.1:{port}/a", path)


def test_a_lack_of_disk_space_is_reported_before_writing(
    serve: Callable[..., Server], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"0\.00 GB more.*VLMBENCH_CACHE"):
        download(serve(whole).url, path)
    assert left(path) == [".weights.pt.lock"]


def test_a_full_disk_keeps_the_partial_file(serve: Callable[..., Server], path: Path) -> None:
    url = serve(whole).url
    program = (
        "import sys; from pathlib import Path; from robustbench_vlm.core.download import download\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\nexcept ValueError as error: sys.exit(str(error))"
    )
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    full = subprocess.run(
        [sys.executable, "-c", program, url, str(path)], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1 and "larger than the limit of this system" in full.stderr
    assert not path.exists() and path.with_name("weights.pt.partial").stat().st_size <= 2_000_000
    assert download(url, path) == DIGEST and left(path) == ["weights.pt"]


def test_simultaneous_downloads_request_the_file_once(serve: Callable[..., Server], path: Path) -> None:
    server = serve(whole)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda number: download(server.url, path), range(4))) == {DIGEST}
    assert len(server.asked) == 1 and left(path) == ["weights.pt"]


def test_hub_addresses_and_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_url("o/n", "a b.pt") == "https://huggingface.co/o/n/resolve/main/a%20b.pt"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    assert hub_url("datasets/o/n", "t/0.tar", "v/1") == "http://127.0.0.1:9/datasets/o/n/resolve/v%2F1/t/0.tar"


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMBENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("VLMBENCH_CACHE", "")
    assert cache_folder() == Path(os.path.expanduser("~")) / ".cache" / "robustbench_vlm"  # noqa: PTH111
