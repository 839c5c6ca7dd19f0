"""Ways in: what is found where, downloads from servers that break off, lie or are killed with us, and the seal."""

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
from made_up_sets import make, make_shards
from torchvision import datasets as torchvision_datasets

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.published import PUBLISHED, MissingData, PublishedDataset
from robustbench_vlm.datasets.published.fetch import fetch
from robustbench_vlm.datasets.published.local_copy import locate, verify


def only(name: str, way: str) -> PublishedDataset:
    """Return a row with one of its ways in, and as many samples as its made-up copies have."""
    ways = {"torchvision": "", "hub": ""} | {way: getattr(PUBLISHED[name], way)}
    return dataclasses.replace(PUBLISHED[name], samples=6, download_bytes=1, **ways)


CARS = only("stanford-cars", "hub")


@pytest.fixture
def cars(server: Server, tmp_path: Path) -> Path:
    """Return the folder of a build that the server has: two shards."""
    folder = make_shards("stanford-cars", tmp_path / "made")
    server.add_hub(folder, CARS.hub)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# What is there.


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dataset_is_found_below_the_root_and_as_the_root(name: str, tmp_path: Path) -> None:
    folder = make(name, tmp_path)
    original = PUBLISHED[name]
    assert locate(original, tmp_path)[1].ids == locate(original, folder)[1].ids == original.read(folder).ids


def test_torchvision_s_folder_comes_before_the_hub_s(tmp_path: Path) -> None:
    make_shards("dtd", tmp_path)
    assert locate(PUBLISHED["dtd"], tmp_path)[1].ids[0] == "wds/s0000000"
    make("dtd", tmp_path)
    assert locate(PUBLISHED["dtd"], tmp_path)[1].ids[0] == "zigzagged/zigzagged_0001.jpg"


def test_what_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as told:
        locate(PUBLISHED["stanford-cars"], tmp_path)
    for part in (str(tmp_path / "stanford_cars"), str(tmp_path / "wds" / "wds_cars"), "VLMBENCH_DATA", "data prepare"):
        assert part in str(told.value)
    with pytest.raises(MissingData, match=r"by hand: fetch http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip"):
        locate(PUBLISHED["tiny-imagenet"], tmp_path)


def test_a_dataset_that_needs_a_licence_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"HatefulMemes is not below .* by hand: agree to the licence"):
        fetch(PUBLISHED["hateful-memes"], tmp_path)
    folder = make("hateful-memes", tmp_path)
    assert fetch(PUBLISHED["hateful-memes"], tmp_path) == folder


def test_a_root_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory; name a folder of yours by --data DIR"):
        fetch(CARS, tmp_path / "file")


# The hub.


def test_the_hub_s_shards_are_fetched_whole(server: Server, cars: Path, tmp_path: Path) -> None:
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


def test_answers_that_break_off_are_gone_on_from(server: Server, cars: Path, tmp_path: Path) -> None:
    shard = f"/datasets/{CARS.hub}/resolve/{REVISION}/test/1.tar"
    server.faults[shard] = [broken_off(3000), broken_off(6000)]
    assert tree(fetch(CARS, tmp_path / "data")) == tree(cars)
    assert server.asked_for("1.tar") == ["", "bytes=3000-", "bytes=6000-"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [(broken_off(100), "broke off after 100 of"), (lie, "is a file with sha256"), (page, "web page|expected")],
)
def test_an_answer_that_never_comes_whole_leaves_no_dataset(
    fault: Any, message: str, server: Server, cars: Path, tmp_path: Path
) -> None:
    shard = f"/datasets/{CARS.hub}/resolve/{REVISION}/test/1.tar"
    server.faults[shard] = [fault] * 20
    with pytest.raises(UserError, match=rf"cannot fetch StanfordCars.*({message}).*By hand: its page is gone"):
        fetch(CARS, tmp_path / "data")
    with pytest.raises(MissingData, match="continues the download that was begun"):
        locate(CARS, tmp_path / "data")
    before = len(server.asked_for("0.tar"))
    server.faults.clear()
    assert tree(fetch(CARS, tmp_path / "data")) == tree(cars)
    assert len(server.asked_for("0.tar")) == before


def test_a_new_revision_begins_anew(server: Server, cars: Path, tmp_path: Path) -> None:
    server.faults[f"/datasets/{CARS.hub}/resolve/{REVISION}/test/1.tar"] = [broken_off(100)] * 20
    with pytest.raises(UserError, match="broke off"):
        fetch(CARS, tmp_path / "data")
    newer = make_shards("stanford-cars", tmp_path / "newer", first_label=7)
    server.add_hub(newer, CARS.hub, "f" * 40)
    assert tree(fetch(CARS, tmp_path / "data")) == tree(newer)
    assert locate(CARS, tmp_path / "data")[1].labels == (7, 7, 8, 8, 9, 9)


def test_a_hub_that_has_no_such_dataset_or_no_shards_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the hub has no list of {CARS.hub}"):
        fetch(CARS, tmp_path / "data")
    (tmp_path / "empty").mkdir()
    server.add_hub(tmp_path / "empty", CARS.hub)
    with pytest.raises(UserError, match="has no test/nshards"):
        fetch(CARS, tmp_path / "data")


def test_a_build_that_lacks_a_shard_is_never_put_there(server: Server, cars: Path, tmp_path: Path) -> None:
    (cars / "test" / "1.tar").unlink()
    server.lists.clear()
    server.add_hub(cars, CARS.hub)
    with pytest.raises(UserError, match=r"there is no .*1\.tar"):
        fetch(CARS, tmp_path / "data")
    assert not (tmp_path / "data" / "wds" / "wds_cars").exists()


def test_a_full_disk_is_told_before_the_download(
    server: Server, cars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in server.lists.values():
        entry["siblings"][-2]["size"] = 10**16
    with pytest.raises(UserError, match=r"it needs 10000000\.\d\d GB, and the disk of .* has .* GB free"):
        fetch(CARS, tmp_path / "data")
    assert server.asked_for(".tar") == []


FETCHING = """
import sys
from pathlib import Path
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.datasets.published.fetch import fetch
fetch(PUBLISHED["stanford-cars"], Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_in_mid_download_leaves_no_dataset(server: Server, cars: Path, tmp_path: Path) -> None:
    root, shard = tmp_path / "data", f"/datasets/{CARS.hub}/resolve/{REVISION}/test/1.tar"
    with (cars / "test" / "1.tar").open("ab") as file:
        file.write(bytes(3 << 20))  # more zeros after its end: a download is written a MiB at a time
    server.add_hub(cars, CARS.hub)
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
    with pytest.raises(MissingData, match="continues the download that was begun"):
        locate(CARS, root)
    assert verify(CARS, root) and not (root / "wds").joinpath("wds_cars").exists()
    before = len(server.asked_for("0.tar"))
    assert tree(fetch(CARS, root)) == tree(cars)
    assert len(server.asked_for("0.tar")) == before and verify(CARS, root) == []
    assert server.asked_for("1.tar") == ["", f"bytes={1 << 20}-"]


# torchvision.

ARCHIVES = {
    "dtd": ("DTD", "_URL", "_MD5", "dtd-r1.0.1.tar.gz"),
    "food101": ("Food101", "_URL", "_MD5", "food-101.tar.gz"),
    "fgvc-aircraft": ("FGVCAircraft", "_URL", "", "fgvc-aircraft-2013b.tar.gz"),
    "sun397": ("SUN397", "_DATASET_URL", "_DATASET_MD5", "SUN397.tar.gz"),
}


@pytest.fixture
def offer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """Return a function (name) that puts a made-up copy on the server, as the archive that torchvision expects."""

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
def test_torchvision_s_archives_are_fetched_and_not_kept(
    name: str, offer: Callable[[str], bytes], server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    offer(name)
    original, told = only(name, "torchvision"), []
    server.faults[f"/{ARCHIVES[name][3]}"] = [broken_off(1000)]
    folder = fetch(original, tmp_path / "data", lambda progress: told.append((progress.done, progress.total)))
    assert tree(folder) == tree(tmp_path / "made" / original.folder)
    assert verify(original, tmp_path / "data") == [] and locate(original, tmp_path / "data")[1].ids
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([".fetching", original.folder])
    assert server.asked_for(".gz")[-2:] == ["", "bytes=1000-"] and told[-1][0] == told[-1][1]
    assert capfd.readouterr() == ("", "")


def test_what_was_half_unpacked_is_not_taken_for_the_whole(offer: Callable[[str], bytes], tmp_path: Path) -> None:
    offer("dtd")
    half = tmp_path / "data" / ".fetching" / "dtd" / "unpacked" / "dtd" / "dtd" / "labels"
    half.mkdir(parents=True)
    (half / "train1.txt").write_text("")
    folder = fetch(only("dtd", "torchvision"), tmp_path / "data")
    assert tree(folder) == tree(tmp_path / "made" / "dtd")


@pytest.mark.parametrize("name", ["dtd", "fgvc-aircraft"])
def test_a_damaged_archive_is_refused_and_fetched_anew(
    name: str, offer: Callable[[str], bytes], server: Server, tmp_path: Path
) -> None:
    offer(name)
    server.faults[f"/{ARCHIVES[name][3]}"] = [lie]
    with pytest.raises(UserError, match=r"torchvision fails with (RuntimeError|ReadError)"):
        fetch(only(name, "torchvision"), tmp_path / "data")
    assert not (tmp_path / "data" / PUBLISHED[name].folder).exists()
    assert tree(fetch(only(name, "torchvision"), tmp_path / "data")) == tree(tmp_path / "made" / PUBLISHED[name].folder)


def test_an_archive_cannot_write_outside_of_its_folder(
    offer: Callable[[str], bytes], server: Server, tmp_path: Path
) -> None:
    offer("fgvc-aircraft")  # whose archive torchvision has no digest for
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../escaped.txt"), io.BytesIO())
    server.files["/fgvc-aircraft-2013b.tar.gz"] = file.getvalue()
    with pytest.raises(UserError, match="torchvision fails with OutsideDestinationError"):
        fetch(only("fgvc-aircraft", "torchvision"), tmp_path / "data")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_where_torchvision_s_host_is_dead_the_hub_is_asked(
    offer: Callable[[str], bytes], server: Server, tmp_path: Path
) -> None:
    offer("dtd")
    server.faults["/dtd-r1.0.1.tar.gz"] = [page] * 9
    with pytest.raises(UserError, match=r"Quota exceeded.*then: the hub has no list of clip-benchmark/wds_vtab-dtd"):
        fetch(PUBLISHED["dtd"], tmp_path / "data")
    build = make_shards("dtd", tmp_path / "made")
    server.add_hub(build, "clip-benchmark/wds_vtab-dtd")
    assert tree(fetch(PUBLISHED["dtd"], tmp_path / "data")) == tree(build)


def test_a_folder_that_is_in_the_way_is_left_alone(offer: Callable[[str], bytes], tmp_path: Path) -> None:
    offer("food101")
    (tmp_path / "data" / "food-101").mkdir(parents=True)
    (tmp_path / "data" / "food-101" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"food-101 is there and not whole: move it away"):
        fetch(only("food101", "torchvision"), tmp_path / "data")
    assert tree(tmp_path / "data" / "food-101") == {"notes.txt": b"mine"}


# What was fetched, and what a person put there.


def test_a_change_of_what_was_fetched_is_found(server: Server, cars: Path, tmp_path: Path) -> None:
    folder = fetch(CARS, tmp_path / "data")
    shard = folder / "test" / "0.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    (found,) = verify(CARS, tmp_path / "data")
    assert f"{folder / 'test'} is not as it was fetched: 3 files of" in found
    (folder / "classnames.txt").unlink()
    assert "no files instead of 1 files" in verify(CARS, tmp_path / "data")[0]
    (folder / "test" / "1.tar").unlink()
    assert [sentence for sentence in verify(CARS, tmp_path / "data") if "1.tar" in sentence]


def test_a_damaged_seal_is_told(server: Server, cars: Path, tmp_path: Path) -> None:
    folder = fetch(CARS, tmp_path / "data")
    (folder / ".vlmbench.json").write_text("{")
    assert "cannot read" in verify(CARS, tmp_path / "data")[0]
    (folder / ".vlmbench.json").unlink()
    assert verify(CARS, tmp_path / "data") == []


def test_too_few_samples_and_missing_pictures_are_found(tmp_path: Path) -> None:
    folder = make("food101", tmp_path)
    (folder / "images" / "waffles" / "0011328.jpg").unlink()
    few, absent = verify(PUBLISHED["food101"], tmp_path)
    assert few == f"{folder} has 6 samples, and the whole split 25250"
    assert absent.startswith("1 images that its lists name are not there") and absent.endswith("0011328.jpg")
    assert verify(PUBLISHED["dtd"], tmp_path)[0].startswith("DTD is not below")


def test_the_hub_s_other_split_is_not_counted(tmp_path: Path) -> None:
    make_shards("eurosat", tmp_path)
    assert verify(PUBLISHED["eurosat"], tmp_path) == []
    make_shards("dtd", tmp_path)
    assert verify(PUBLISHED["dtd"], tmp_path) == [
        f"{tmp_path}/wds/wds_vtab-dtd has 6 samples, and the whole split 1880"
    ]
