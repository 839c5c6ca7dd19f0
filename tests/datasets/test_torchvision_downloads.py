"""Tests of all downloads through torchvision, from made-up archives with the layout of the real ones."""

from pathlib import Path

import pytest
from hub_server import Server
from made_up_archives import ARCHIVES, download_from, serve_archives, tree
from made_up_sets import make

from robustbench_vlm.core.download_speed import warn_slow
from robustbench_vlm.datasets.published import PUBLISHED, PublishedDataset
from robustbench_vlm.datasets.published.base import DownloadSource
from robustbench_vlm.datasets.published.local_copy import locate
from robustbench_vlm.datasets.published.torchvision import fetch_from_torchvision as fetch


def original_of(published: PublishedDataset) -> DownloadSource | None:
    return next((source for source in published.sources if source.kind == "original"), None)


def test_archives_cover_all_torchvision_datasets() -> None:
    assert set(ARCHIVES) == {name for name, published in PUBLISHED.items() if original_of(published)}


@pytest.mark.filterwarnings("ignore:.*align should be passed:Warning")
@pytest.mark.parametrize("name", ARCHIVES)
def test_downloaded_files_equal_those_in_the_archive(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = PUBLISHED[name], download_from(server, monkeypatch)
    folder = make(name, tmp_path / "made")
    serve_archives(name, folder, server)
    source = original_of(original)
    assert source
    fetched = fetch(original, source, tmp_path / "data", lambda progress: None, warn_slow)
    assert fetched == tmp_path / "data" / original.folder
    assert tree(fetched) == tree(folder)
    assert locate(original, tmp_path / "data")[1].ids == original.read(folder).ids
    assert all(url.startswith("https://") for url in asked) and len(asked) == len(server.files)
