"""Tests of the order of the download sources: the table, hosts that are down, wrong files on the Hub, slow hosts."""

import http.server
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hub_server import REVISION, Server, lie
from made_up_archives import ARCHIVES, download_from, serve_archives
from made_up_sets import local_sources, make, make_shards

from robustbench_vlm.core.download_speed import SlowDownload
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hosts import Hosts
from robustbench_vlm.datasets.published import PUBLISHED, MissingData, PublishedDataset, fetch
from robustbench_vlm.datasets.published.base import DownloadSource
from robustbench_vlm.datasets.published.fetch import NoSourceReachable
from robustbench_vlm.datasets.published.hub import hub_folder
from robustbench_vlm.datasets.published.table import SUITE

PAGE = Path(__file__).parents[2] / "docs" / "real.md"
CLOSED = "http://127.0.0.1:9"
NAMES = [published.name for published in SUITE if published.fetchable]
PROBLEMS = ["none", "hub down", "wrong count", "wrong order", "wrong digest"]


@pytest.fixture
def original() -> Iterator[Server]:
    """Return a server that stands for the hosts of the original archives."""
    served = Server()
    yield served
    served.server.shutdown()
    served.server.server_close()


def break_hub(problem: str, folder: Path, published: PublishedDataset, server: Server) -> None:
    """Put the made-up shards in `folder` on the Hub, with one problem."""
    hub = published.hub
    assert hub
    last = max((folder / "test").glob("*.tar"))
    if problem == "wrong count":
        shutil.copy(make_shards(published.name, folder.parent / "few", samples=2) / "test" / "0.tar", folder / "test")
    if problem == "wrong order":
        first, second, *rest = (folder / "classnames.txt").read_text().splitlines()
        (folder / "classnames.txt").write_text("\n".join([second, first, *rest, ""]))
    server.add_hub(folder, hub.name)
    if problem == "wrong digest":
        server.faults[f"/datasets/{hub.name}/resolve/{REVISION}/test/{last.name}"] = [lie] * 9


def works(source: DownloadSource, problem: str) -> bool:
    # The number of samples of another split is not known.
    return source.kind == "original" or problem == "none" or (problem == "wrong count" and bool(source.split))


@pytest.mark.filterwarnings("ignore:.*align should be passed:Warning")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NAMES)
def test_first_source_that_works_is_used(
    name: str,
    problem: str,
    server: Server,
    original: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    published, root = local_sources(name, host=original.url), tmp_path / "data"
    download_from(original, monkeypatch)
    if name in ARCHIVES:
        serve_archives(name, make(name, tmp_path / "made"), original)
    if published.hub:
        break_hub(problem, make_shards(name, tmp_path / "hub", samples=published.samples), published, server)
    if problem == "hub down":
        monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    expected = next((source for source in published.sources if works(source, problem)), None)
    if expected is None:
        with pytest.raises(UserError, match=rf"cannot fetch .*`vlmbench data prepare {name}`.*by hand"):
            fetch.fetch(published, root)
        return
    folders = {"hub": published.hub and hub_folder(published.hub, root), "original": root / published.folder}
    assert fetch.fetch(published, root) == folders[expected.kind]
    skipped = published.sources.index(expected)
    reasons = {"hub down": "cannot reach 127.0.0.1:9", "wrong digest": "sha256", "wrong order": "at the label 0"}
    if skipped:
        assert reasons.get(problem, f"expected the {published.samples} samples") in caplog.text
        assert ("The next source is tried" in caplog.text) == (problem != "hub down")
    else:
        assert "next source" not in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_one_message_names_the_command_and_the_manual_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    published, began = local_sources(name, host=CLOSED), time.monotonic()
    with pytest.raises(NoSourceReachable) as told:
        fetch.fetch(published, tmp_path)
    assert time.monotonic() - began < 5
    message = str(told.value)
    assert message.count("127.0.0.1:9 (connection refused)") == 1
    assert f"run `vlmbench data prepare {name}`. To fetch it by hand: " in message
    hub = published.hub
    assert (f"`hf download {hub.name} " in message) if hub and not hub.split else "`hf download" not in message


def test_hub_that_does_not_answer_is_asked_once(
    server: Server, original: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        time.sleep(1)

    monkeypatch.setattr("robustbench_vlm.datasets.published.hub._LIST_SECONDS", 0.1)
    download_from(original, monkeypatch)
    hosts = Hosts()
    for name in ("cifar10", "cifar100", "sun397"):
        hub = PUBLISHED[name].hub
        assert hub
        server.add_hub(make_shards(name, tmp_path / name), hub.name)
        server.faults[f"/api/datasets/{hub.name}"] = [wait] * 9
        serve_archives(name, make(name, tmp_path / "made"), original)
        published = local_sources(name, host=original.url)
        assert fetch.fetch(published, tmp_path / "data", hosts=hosts) == tmp_path / "data" / published.folder
    assert len([path for path, _ in server.asked if path.startswith("/api/")]) == 1


def test_licensed_dataset_is_never_downloaded(server: Server, tmp_path: Path) -> None:
    server.add_hub(make_shards("imagenet", tmp_path / "made"), "clip-benchmark/wds_imagenet1k")
    with pytest.raises(MissingData, match=r"ask for access at https://image-net\.org"):
        fetch.fetch(PUBLISHED["imagenet"], tmp_path / "data")
    assert not server.asked


def slow_hub(published: PublishedDataset, monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]) -> list[str]:
    """Replace the downloads: a source with a rate is slow. Return the list of the used sources, which grows."""
    used: list[str] = []

    def fetcher(published, source, root, on_progress, on_slow) -> Path:  # type: ignore[no-untyped-def]
        if source.kind in rates:
            on_slow(SlowDownload("https://host.example/file", rates[source.kind], 600))
        used.append(source.kind)
        return root / source.kind

    monkeypatch.setattr(fetch, "_FETCHERS", dict.fromkeys(("hub", "original"), fetcher))
    return used


@pytest.mark.parametrize(
    ("name", "rates", "expected"),
    [
        ("cifar10", {}, "hub"),
        ("cifar10", {"hub": 1000.0}, "original"),
        ("cifar10", {"hub": 1000.0, "original": 2000.0}, "original"),
        ("cifar10", {"hub": 3000.0, "original": 2000.0}, "hub"),
        ("caltech101", {"original": 1000.0}, "original"),  # the shards on the Hub have other samples
        ("pcam", {"hub": 1000.0}, "hub"),
    ],
)
def test_slow_source_is_left_for_one_with_the_same_samples(
    name: str,
    rates: dict[str, float],
    expected: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    published = local_sources(name)
    used = slow_hub(published, monkeypatch, rates)
    assert fetch.fetch(published, tmp_path) == tmp_path / expected and used == [expected]
    assert ("is sent at" in caplog.text) == bool(rates)


def test_space_is_checked_when_the_host_states_the_size(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The table states 39 GB for the archive. Only the size that the host states counts.
    published, made = local_sources("sun397", "original"), make("sun397", tmp_path / "made")
    (made / "README").write_bytes(numpy.random.default_rng(0).bytes(1_000_000))
    serve_archives("sun397", made, server)
    download_from(server, monkeypatch)
    size, usage = len(server.files["/SUN397.tar.gz"]), shutil.disk_usage(tmp_path)
    # The archive has room, but not the archive and its unpacked files.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size + 1))
    with pytest.raises(UserError, match=r"the download needs 0\.00 GB, and the disk of"):
        fetch.fetch(published, tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * size))
    assert fetch.fetch(published, tmp_path / "data") == tmp_path / "data" / "SUN397"


def test_page_lists_the_sources_in_their_order() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for published in SUITE:
        (row,) = re.findall(rf"^\| `{published.name}` \| (.*hub.*|.*original.*|by hand.*) \|$", text, re.MULTILINE)
        if not published.fetchable:
            assert row.startswith("by hand | ")
            continue
        kinds, reason = row.split(" | ")
        assert kinds == ", ".join(source.kind for source in published.sources)
        assert reason == published.sources[0].reason


def test_hub_is_first_only_for_the_same_split() -> None:
    for published in PUBLISHED.values():
        assert not any(source.split for source in published.sources[:1] if source.kind == "hub")
