"""Slow hosts, other addresses and limited requests, from real servers on the loopback address."""

import email.utils
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_server import CONTENT, DIGEST, Handler, Server, code, cut, whole

from robustbench_vlm.core.download import download
from robustbench_vlm.core.download_speed import Limits, SlowDownload
from robustbench_vlm.core.errors import UserError

QUICK = Limits(slow_rate=1_000_000.0, slow_seconds=0.1, longest_wait=3.0)
Serve = Callable[..., Server]


def slow(handler: Handler, *, rate: float = 500_000.0, stop: int | None = None, tag: str = '"one"') -> None:
    """Send the file from the requested start at `rate` bytes per second."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    part = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
    handler.begin(206 if start else 200, Content_Length=len(CONTENT) - start, ETag=tag, **part)
    step = int(rate / 50)
    try:
        for here in range(start, stop or len(CONTENT), step):
            handler.wfile.write(CONTENT[here : here + step])
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:  # the client has closed the connection
        pass


def test_a_slow_download_is_told_once_and_goes_on(serve: Serve, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begins = [whole if number else functools.partial(slow, stop=400_000) for number in range(2)]
    server = serve(*begins)
    assert download(server.url, path, limits=QUICK) == DIGEST
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "robustbench_vlm"
    assert f"{server.url} is sent at " in record.message and "kB/s, so the rest takes about" in record.message
    assert "Ctrl-C" in record.message


def test_a_callback_gets_the_rate_and_can_stop_the_download(serve: Serve, path: Path) -> None:
    found: list[SlowDownload] = []

    def stop(slow: SlowDownload) -> None:
        found.append(slow)
        raise slow

    server = serve(slow, whole)
    with pytest.raises(SlowDownload, match="kB/s"):
        download(server.url, path, on_slow=stop, limits=QUICK)
    (told,) = found
    assert told.url == server.url and 100_000 < told.rate < 700_000
    assert told.seconds_left is not None and 4 < told.seconds_left < 30
    partial = path.with_name("weights.pt.partial")
    received = partial.stat().st_size
    assert 0 < received < len(CONTENT) / 2 and not path.exists()
    assert download(server.url, path) == DIGEST and server.ranges == ["", f"bytes={received}-"]


def test_a_download_that_is_fast_enough_or_nearly_finished_is_not_slow(serve: Serve, path: Path) -> None:
    def refuse(slow: SlowDownload) -> None:
        raise AssertionError(slow)

    for limits in (Limits(slow_rate=1000.0, slow_seconds=0.1), Limits(slow_rate=1e12, slow_seconds=0.8)):
        server = serve(functools.partial(slow, rate=2_000_000.0))
        assert download(server.url, path, on_slow=refuse, limits=limits) == DIGEST
        path.unlink()


def test_a_slow_address_is_replaced_by_the_next_one(serve: Serve, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = serve(slow), serve(whole)
    assert download(first.url, path, alternatives=[second.url], limits=QUICK) == DIGEST
    assert second.ranges == [""], "without a digest, the bytes of two addresses are not combined"
    assert "another address is tried" in caplog.text
    path.unlink()
    first, second = serve(slow), serve(whole)
    assert download(first.url, path, sha256=DIGEST, alternatives=[second.url], limits=QUICK) == DIGEST
    assert second.ranges[0].startswith("bytes="), "with a digest, the received bytes are continued"
    assert "If-Range" not in second.asked[0]


def test_a_different_file_at_the_next_address_is_detected_by_the_digest(serve: Serve, path: Path) -> None:
    other = functools.partial(whole, content=CONTENT[::-1])
    first, second, third = serve(slow), serve(other), serve(whole)
    addresses = [second.url, third.url]
    assert download(first.url, path, sha256=DIGEST, alternatives=addresses, limits=QUICK) == DIGEST
    assert len(second.asked) == 2 and len(third.asked) == 1


def test_if_all_addresses_are_slow_the_fastest_is_used(
    serve: Serve, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slower, faster = serve(functools.partial(slow, rate=200_000.0), whole), serve(slow, whole)
    assert download(slower.url, path, alternatives=[faster.url, serve(code(404)).url], limits=QUICK) == DIGEST
    assert (len(slower.asked), len(faster.asked)) == (1, 2)


def test_if_all_addresses_fail_each_reason_is_given(serve: Serve, path: Path) -> None:
    missing, refused = serve(code(404)), serve(code(403))
    with pytest.raises(UserError) as error:
        download(missing.url, path, alternatives=[refused.url])
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{missing.url} does not exist") and second.startswith(f"{refused.url} requires a login")
    with pytest.raises(UserError, match="is not an https address"):
        download(missing.url, path, alternatives=["http://example.com/a"])


def in_one_second(handler: Handler) -> None:
    after = email.utils.formatdate(time.time() + 1, usegmt=True)
    handler.begin(429, Content_Length=0, Retry_After=after)


LIMITED = {
    "seconds": code(429, Retry_After=1),
    "date": in_one_second,
    "hub": code(429, RateLimit='"api";r=0;t=1', RateLimit_Policy='"fixed window";"api";q=500;w=300'),
    "draft": code(429, RateLimit_Reset=1),
    "unavailable": code(503, Retry_After=1),
}


@pytest.mark.parametrize("form", LIMITED)
def test_a_limited_request_is_repeated_after_the_stated_time(
    form: str, serve: Serve, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(cut(1_000_000), LIMITED[form], whole)
    began = time.monotonic()
    assert download(server.url, path, limits=QUICK) == DIGEST
    # A date is given in whole seconds.
    assert (0.0 if form == "date" else 1.0) <= time.monotonic() - began < 5 and len(server.asked) == 3
    (record,) = caplog.records if form != "date" else caplog.records or [None]
    if record:
        assert f"{server.url}: the server returns the status" in record.message
        assert "continues in 1 seconds, at 20" in record.message and "press Ctrl-C" in record.message


@pytest.mark.parametrize("after", ["4", "Fri, 31 Dec 2100 23:59:59 GMT", "99999999999999999999"])
def test_a_wait_over_the_limit_ends_with_the_time_to_try_again(after: str, serve: Serve, path: Path) -> None:
    server = serve(cut(1_000_000), code(429, Retry_After=after))
    with pytest.raises(UserError, match=r"status 429 Too Many Requests and asks to wait .*try again after \d{4}-\d\d-"):
        download(server.url, path, limits=QUICK)
    assert len(server.asked) == 2 and path.with_name("weights.pt.partial").stat().st_size == 1_000_000


def test_several_waits_together_do_not_exceed_the_limit(serve: Serve, path: Path) -> None:
    server = serve(code(429, Retry_After=1))
    began = time.monotonic()
    with pytest.raises(UserError, match="try again after"):
        download(server.url, path, limits=Limits(longest_wait=2.0))
    assert len(server.asked) == 3 and time.monotonic() - began < 4
