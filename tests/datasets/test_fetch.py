"""Tests of downloads: folders that are searched, interrupted and wrong responses, killed processes, checksums."""

import dataclasses
import hashlib
import io
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import REVISION, Server, broken_off, lie, page
from made_up_sets import local_sources, make, make_shards
from torchvision import datasets as torchvision_datasets

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.published import PUBLISHED, MissingData
from robustbench_vlm.datasets.published.fetch import fetch
from robustbench_vlm.datasets.published.local_copy import locate, verify

CARS = local_sources("stanford-cars")
assert CARS.hub
REPOSITORY = CARS.hub.name


@pytest.fixture
def cars(server: Server, tmp_path: Path) -> Path:
    """Return a folder with two tar shards that the server also has."""
    folder = make_shards("stanford-cars", tmp_path / "made")
    server.add_hub(folder, REPOSITORY)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# Search for local copies.


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dataset_is_found_below_the_root_and_as_the_root(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path)
    original = PUBLISHED[name]
    assert locate(original, tmp_path)[1].ids == locate(original, folder)[1].ids == original.read(folder).ids


def test_torchvision_folder_is_preferred_to_hub_folder(tmp_path: Path) -> None:
    make_shards("dtd", tmp_path)
    assert locate(PUBLISHED["dtd"], tmp_path)[1].ids[0] == "wds/s0000000"
    make("dtd", tmp_path)
    assert locate(PUBLISHED["dtd"], tmp_path)[1].ids[0] == "zigzagged/zigzagged_0001.jpg"


def test_error_for_a_missing_dataset_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as told:
        locate(PUBLISHED["stanford-cars"], tmp_path)
    for part in (str(tmp_path / "stanford_cars"), str(tmp_path / "wds" / "wds_cars"), "VLMBENCH_DATA", "data prepare"):
        assert part in str(told.value)
    with pytest.raises(
        MissingData, match=r"fetch it by hand: fetch http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip"
    ):
        locate(PUBLISHED["tiny-imagenet"], tmp_path)


def test_error_for_a_licensed_dataset_names_the_licence(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"HatefulMemes is not below .* fetch it by hand: agree to the licence"):
        fetch(PUBLISHED["hateful-memes"], tmp_path)
    folder = make("hateful-memes", tmp_path)
    assert fetch(PUBLISHED["hateful-memes"], tmp_path) == folder


def test_unwritable_data_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; give a writable folder with --data DIR"):
        fetch(CARS, tmp_path / "file")


# Downloads from the Hub.


def test_all_hub_shards_are_downloaded(server: Server, cars: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    folder = fetch(CARS, tmp_path / "data", lambda progress: told.append((progress.done, progress.total)))
    assert folder == tmp_path / "data" / "wds" / "wds_cars" and tree(folder) == tree(cars)
    total = sum(map(len, tree(cars).values()))
    assert told[-1] == (total, total) and [here for here, _ in told] == sorted(here for here, _ in told)
    assert locate(CARS, tmp_path / "data")[1].labels == (0, 0, 1, 1, 2, 2)
    assert verify(CARS, tmp_path / "data") == []
    assert [path.name for path in (tmp_path / "data" / ".fetching").iterdir()] == ["stanford-cars.lock"]
    asked = len(server.asked)
    assert fetch(CARS, tmp_path / "data") == folder and len(server.asked) == asked


def test_interrupted_responses_are_resumed(server: Server, cars: Path, tmp_path: Path) -> None:
    shard = f"/datasets/{REPOSITORY}/resolve/{REVISION}/test/1.tar"
    server.faults[shard] = [broken_off(3000), broken_off(6000)]
    assert tree(fetch(CARS, tmp_path / "data")) == tree(cars)
    assert server.asked_for("1.tar") == ["", "bytes=3000-", "bytes=6000-"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (broken_off(100), r"broke off: .*received \d+"),
        (lie, "is a file with sha256"),
        (page, "web page|expected"),
    ],
)
def test_failed_downloads_leave_no_dataset(
    fault: Any, message: str, server: Server, cars: Path, tmp_path: Path
) -> None:
    shard = f"/datasets/{REPOSITORY}/resolve/{REVISION}/test/1.tar"
    server.faults[shard] = [fault] * 20
    with pytest.raises(
        UserError, match=rf"cannot fetch StanfordCars.*({message}).*To fetch it by hand: .*its page is gone"
    ):
        fetch(CARS, tmp_path / "data")
    with pytest.raises(MissingData, match="continues the interrupted download"):
        locate(CARS, tmp_path / "data")
    before = len(server.asked_for("0.tar"))
    server.faults.clear()
    assert tree(fetch(CARS, tmp_path / "data")) == tree(cars)
    assert len(server.asked_for("0.tar")) == before


def test_new_hub_revision_restarts_the_download(server: Server, cars: Path, tmp_path: Path) -> None:
    server.faults[f"/datasets/{REPOSITORY}/resolve/{REVISION}/test/1.tar"] = [broken_off(100)] * 20
    with pytest.raises(UserError, match="broke off"):
        fetch(CARS, tmp_path / "data")
    newer = make_shards("stanford-cars", tmp_path / "newer", first_label=7)
    server.add_hub(newer, REPOSITORY, "f" * 40)
    assert tree(fetch(CARS, tmp_path / "data")) == tree(newer)
    assert locate(CARS, tmp_path / "data")[1].labels == (7, 7, 8, 8, 9, 9)


def test_missing_hub_repository_or_shards_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot list the files of {REPOSITORY} on the Hub"):
        fetch(CARS, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    server.add_hub(tmp_path / "empty", REPOSITORY)
    with pytest.raises(UserError, match="lacks test/nshards"):
        fetch(CARS, tmp_path / "data")


def test_incomplete_hub_repository_leaves_no_dataset(server: Server, cars: Path, tmp_path: Path) -> None:
    (cars / "test" / "1.tar").unlink()
    server.lists.clear()
    server.add_hub(cars, REPOSITORY)
    with pytest.raises(UserError, match=r"there is no .*1\.tar"):
        fetch(CARS, tmp_path / "data")
    assert not (tmp_path / "data" / "wds" / "wds_cars").exists()


def test_too_little_disk_space_is_reported_before_the_download(
    server: Server, cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in server.lists.values():
        entry["siblings"][-2]["size"] = 10**16
    with pytest.raises(UserError, match=r"the download needs 10000000\.\d\d GB, and the disk of .* has .* GB free"):
        fetch(CARS, tmp_path / "data")
    assert server.asked_for(".tar") == []


FETCHING = """
import sys
from pathlib import Path
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.datasets.published.fetch import fetch
fetch(PUBLISHED["stanford-cars"], Path(sys.argv[1]))
"""


def test_killed_download_leaves_no_dataset_and_is_resumed(server: Server, cars: Path, tmp_path: Path) -> None:
    root, shard = tmp_path / "data", f"/datasets/{REPOSITORY}/resolve/{REVISION}/test/1.tar"
    with (cars / "test" / "1.tar").open("ab") as file:
        file.write(bytes(3 << 20))  # more zeros after its end: a download is written a MiB at a time
    server.add_hub(cars, REPOSITORY)
    server.faults[shard] = [broken_off(3 << 19, then=60)]
    process = subprocess.Popen([sys.executable, "-c", FETCHING, str(root)])
    partial = root / ".fetching" / "stanford-cars" / f"hub-{REVISION}" / "test" / "1.tar.partial"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if partial.exists() and partial.stat().st_size:
            break
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(MissingData, match="continues the interrupted download"):
        locate(CARS, root)
    assert verify(CARS, root) and not (root / "wds").joinpath("wds_cars").exists()
    before = len(server.asked_for("0.tar"))
    assert tree(fetch(CARS, root)) == tree(cars)
    assert len(server.asked_for("0.tar")) == before and verify(CARS, root) == []
    first, resumed = server.asked_for("1.tar")
    assert not first and int(resumed.removeprefix("bytes=").removesuffix("-")) > 0


# Downloads through torchvision.

ARCHIVES = {
    "dtd": ("DTD", "_URL", "_MD5", "dtd-r1.0.1.tar.gz"),
    "food101": ("Food101", "_URL", "_MD5", "food-101.tar.gz"),
    "fgvc-aircraft": ("FGVCAircraft", "_URL", "", "fgvc-aircraft-2013b.tar.gz"),
    "sun397": ("SUN397", "_DATASET_URL", "_DATASET_MD5", "SUN397.tar.gz"),
}


@pytest.fixture
def offer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """Return a function (name) that adds a made-up copy to the server, as the archive that torchvision expects."""

    def put(name: str) -> bytes:
        folder = make(name, tmp_path / "made")
        packed, file = folder / "dtd" if name == "dtd" else folder, io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(packed, packed.name)
        kind, url, md5, archive_name = ARCHIVES[name]
        server.files[f"/{archive_name}"] = file.getvalue()
        monkeypatch.setattr(getattr(torchvision_datasets, kind), url, f"{server.url}/{archive_name}")
        if md5:
            digest = hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest()
            monkeypatch.setattr(getattr(torchvision_datasets, kind), md5, digest)
        return file.getvalue()

    return put


@pytest.mark.parametrize("name", ARCHIVES)
def test_torchvision_archives_are_removed_after_unpacking(
    name: str, offer: Callable[[str], bytes], server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    original, told = local_sources(name, "original"), []
    server.faults[f"/{ARCHIVES[name][3]}"] = [broken_off(1000)]
    folder = fetch(original, tmp_path / "data", lambda progress: told.append((progress.done, progress.total)))
    assert tree(folder) == tree(tmp_path / "made" / original.folder)
    assert verify(original, tmp_path / "data") == [] and locate(original, tmp_path / "data")[1].ids
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([".fetching", original.folder])
    assert server.asked_for(".gz")[-2:] == ["", "bytes=1000-"] and told[-1][0] == told[-1][1]
    assert capfd.readouterr() == ("", "")


def test_partly_unpacked_dataset_is_not_used(offer: Callable[[str], bytes], tmp_path: Path) -> None:
    offer("dtd")
    half = tmp_path / "data" / ".fetching" / "dtd" / "unpacked" / "dtd" / "dtd" / "labels"
    half.mkdir(parents=True)
    (half / "train1.txt").write_text("")
    folder = fetch(local_sources("dtd", "original"), tmp_path / "data")
    assert tree(folder) == tree(tmp_path / "made" / "dtd")


@pytest.mark.parametrize("name", ["dtd", "fgvc-aircraft"])
def test_damaged_archive_is_refused_and_downloaded_again(
    name: str, offer: Callable[[str], bytes], server: Server, tmp_path: Path
) -> None:
    offer(name)
    server.faults[f"/{ARCHIVES[name][3]}"] = [lie]
    with pytest.raises(UserError, match=r"torchvision fails with (RuntimeError|ReadError)"):
        fetch(local_sources(name, "original"), tmp_path / "data")
    assert not (tmp_path / "data" / PUBLISHED[name].folder).exists()
    assert tree(fetch(local_sources(name, "original"), tmp_path / "data")) == tree(
        tmp_path / "made" / PUBLISHED[name].folder
    )


def test_archive_cannot_write_outside_its_folder(offer: Callable[[str], bytes], server: Server, tmp_path: Path) -> None:
    offer("fgvc-aircraft")  # torchvision does not know the digest of this archive
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../escaped.txt"), io.BytesIO())
    server.files["/fgvc-aircraft-2013b.tar.gz"] = file.getvalue()
    with pytest.raises(UserError, match="torchvision fails with OutsideDestinationError"):
        fetch(local_sources("fgvc-aircraft", "original"), tmp_path / "data")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_hub_is_used_if_torchvision_fails(offer: Callable[[str], bytes], server: Server, tmp_path: Path) -> None:
    offer("dtd")
    server.faults["/dtd-r1.0.1.tar.gz"] = [page] * 9
    with pytest.raises(UserError, match=r"Quota exceeded.*then: cannot list the files of clip-benchmark/wds_vtab-dtd"):
        fetch(local_sources("dtd"), tmp_path / "data")
    build = make_shards("dtd", tmp_path / "made")
    server.add_hub(build, "clip-benchmark/wds_vtab-dtd")
    assert tree(fetch(local_sources("dtd"), tmp_path / "data")) == tree(build)


def test_existing_incomplete_folder_is_not_overwritten(offer: Callable[[str], bytes], tmp_path: Path) -> None:
    offer("food101")
    (tmp_path / "data" / "food-101").mkdir(parents=True)
    (tmp_path / "data" / "food-101" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"food-101 exists, but .* complete dataset: move or remove"):
        fetch(local_sources("food101", "original"), tmp_path / "data")
    assert tree(tmp_path / "data" / "food-101") == {"notes.txt": b"mine"}


# Verification of downloads and of copies that users made.


def test_verify_finds_changed_files_of_a_download(server: Server, cars: Path, tmp_path: Path) -> None:
    folder = fetch(CARS, tmp_path / "data")
    shard = folder / "test" / "0.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    (found,) = verify(CARS, tmp_path / "data")
    assert f"{folder / 'test'} has changed since the download: it has 3 files with" in found
    (folder / "classnames.txt").unlink()
    assert "it has no files, expected 1 files" in verify(CARS, tmp_path / "data")[0]
    (folder / "test" / "1.tar").unlink()
    assert [sentence for sentence in verify(CARS, tmp_path / "data") if "1.tar" in sentence]


def test_damaged_checksum_file_is_an_error(server: Server, cars: Path, tmp_path: Path) -> None:
    folder = fetch(CARS, tmp_path / "data")
    (folder / ".vlmbench.json").write_text("{")
    assert "cannot read" in verify(CARS, tmp_path / "data")[0]
    (folder / ".vlmbench.json").unlink()
    assert verify(CARS, tmp_path / "data") == []


def test_verify_finds_missing_samples_and_images(tmp_path: Path) -> None:
    folder = make("food101", tmp_path)
    (folder / "images" / "waffles" / "0011328.jpg").unlink()
    few, absent = verify(PUBLISHED["food101"], tmp_path)
    assert few == f"{folder} has 6 samples, expected 25250 (the complete split)"
    assert absent.startswith("1 listed images are missing") and absent.endswith("0011328.jpg")
    assert verify(PUBLISHED["dtd"], tmp_path)[0].startswith("DTD is not below")


@pytest.mark.parametrize("target", [".", "..", "../..", "self"])
def test_links_in_class_folders_of_published_datasets_add_no_samples(target: str, tmp_path: Path) -> None:
    folder = make("eurosat", tmp_path)
    before = locate(PUBLISHED["eurosat"], tmp_path)[1].ids
    for path in (folder / "2750").iterdir():
        (path / "self").symlink_to(target)
    assert locate(PUBLISHED["eurosat"], tmp_path)[1].ids == before


def test_more_samples_than_the_split_has_are_refused(tmp_path: Path) -> None:
    make("eurosat", tmp_path)
    locate(dataclasses.replace(PUBLISHED["eurosat"], samples=6), tmp_path)
    with pytest.raises(UserError, match=r"eurosat has 6 samples, but the split 'all' of EuroSAT has 5: remove"):
        locate(dataclasses.replace(PUBLISHED["eurosat"], samples=5), tmp_path)


def test_verify_does_not_count_samples_of_another_hub_split(tmp_path: Path) -> None:
    make_shards("eurosat", tmp_path)
    assert verify(PUBLISHED["eurosat"], tmp_path) == []
    make_shards("dtd", tmp_path)
    assert verify(PUBLISHED["dtd"], tmp_path) == [
        f"{tmp_path}/wds/wds_vtab-dtd has 6 samples, expected 1880 (the complete split)"
    ]
