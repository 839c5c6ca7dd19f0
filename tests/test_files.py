"""File helpers: atomic writes, paths inside a folder, and messages for errors of the file system."""

import ctypes
import errno
import hashlib
import mmap
import os
import time
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import (
    explained,
    inside,
    package_folder,
    paths_inside,
    read_ahead,
    sha256_of,
    write_text,
    write_whole,
)


def test_a_written_file_is_complete_and_readable_by_all_users(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no posix_fadvise")
def test_read_ahead_loads_the_file_into_memory(tmp_path: Path) -> None:
    path, page = tmp_path / "file", mmap.PAGESIZE
    path.write_bytes(bytes(1024 * page))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(_in_memory(path)):
        pytest.skip("this file system keeps its files in memory")
    read_ahead(path, 16 * page, 8 * page)
    deadline = time.monotonic() + 10
    while not all(_in_memory(path)[16:24]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(_in_memory(path)[16:24]) and not _in_memory(path)[-1]


def _in_memory(path: Path) -> list[bool]:
    """Return for each page of a file whether it is in the page cache."""
    bytes_ = numpy.memmap(path, mode="r")
    found = (ctypes.c_ubyte * (bytes_.nbytes // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(bytes_.ctypes.data), ctypes.c_size_t(bytes_.nbytes), found) == 0
    return [bool(each & 1) for each in found]


@pytest.mark.parametrize("error", [RuntimeError("broken off"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_existing_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def broken(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, broken)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@given(st.binary(max_size=300_000))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_sha256_of_is_the_digest_of_the_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda partial: partial.write_bytes(content))
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "/"]), max_size=6).map("/".join))
def test_paths_outside_the_folder_are_refused(relative: str) -> None:
    folder = Path("/some/folder")
    depth = lowest = 0
    for part in relative.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        lowest = min(lowest, depth)
    if relative.startswith("/") or depth < 0:
        with pytest.raises(UserError, match="is outside the folder"):
            inside(folder, relative)
    elif lowest == 0:
        assert inside(folder, relative).is_relative_to(folder)


def test_a_link_to_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is outside the folder"):
        inside(tmp_path / "folder", "link/file")


def test_many_paths_are_checked_as_single_paths_are(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "below" / "out").symlink_to(tmp_path / "file")
    (folder / "below" / "in").symlink_to(folder / "page")
    path_of = paths_inside(folder)
    for name in ("page", "below/page", "below/in", "new/page", "below/..", "below/../page", "."):
        assert path_of(name) == inside(folder, name)
    for name in ("out/file", "below/out", "../file", "below/../../file", "..", "/file"):
        with pytest.raises(UserError, match="is outside the folder"):
            path_of(name)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full: free some space.*nothing is lost"),
        (errno.EROFS, "read-only.*give another folder"),
        (errno.EACCES, "may not write.*give another folder"),
    ],
)
def test_errors_that_a_user_can_fix_become_user_errors(number: int, message: str) -> None:
    with pytest.raises(UserError, match=message), explained(Path("some/file")):
        raise OSError(number, "message of the system")


def test_other_errors_are_reported_with_the_reason_of_the_system() -> None:
    with pytest.raises(UserError, match=r"cannot write some/file: odd: check the path"), explained(Path("some/file")):
        raise OSError(errno.ESTALE, "odd")


def test_errors_of_the_program_are_not_changed() -> None:
    with pytest.raises(KeyError), explained(Path("some/file")):
        try:
            raise OSError(errno.ESTALE, "odd")
        except OSError:
            raise KeyError("name")  # noqa: B904


def test_a_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "in the way")
    with pytest.raises(UserError, match="a part of the path is a file"):
        write_text(tmp_path / "file" / "below", "")


def test_package_folder_finds_the_leaderboards() -> None:
    assert package_folder("leaderboards").is_dir()
