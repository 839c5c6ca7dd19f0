"""Test records on disk: valid files are read, all other samples are computed again, and no record is lost."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_vlm.core import files
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.store import (
    Finished,
    Piece,
    cell_folder,
    locked,
    merge,
    missing_ranges,
    read_cell,
    read_finished,
    run_folder,
    safe_name,
    write_shard,
)
from robustbench_vlm.leaderboard import entry_records

Cells = Callable[..., Cell]
Results = Callable[..., list[SampleResult]]


def store(folder: Path, cell: Cell, results: list[SampleResult], start: int, stop: int) -> Path:
    write_shard(folder, Shard(0, start, stop, cell.fingerprint), results[start:stop])
    return folder / f"{start:06d}-{stop:06d}.parquet"


@given(
    size=st.integers(1, 60),
    shard_sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
)
def test_interrupted_runs_with_any_shard_sizes_compute_every_sample_once(
    size: int, shard_sizes: list[int], seed: int
) -> None:
    choose = random.Random(seed)
    pieces: list[Piece] = []
    for shard_size in [*shard_sizes, shard_sizes[0]]:
        found = Finished(tuple(sorted(pieces, key=lambda piece: piece.start)), ())
        ranges = missing_ranges(size, found, shard_size)
        assert all(0 < stop - start <= shard_size for start, stop in ranges)
        assert ranges == sorted(ranges)
        pieces += [Piece(*each, ()) for each in ranges if choose.random() < 0.5]
    found = Finished(tuple(sorted(pieces, key=lambda piece: piece.start)), ())
    pieces += [Piece(*each, ()) for each in missing_ranges(size, found, shard_sizes[0])]
    assert sorted(n for piece in pieces for n in range(piece.start, piece.stop)) == list(range(size))


@given(size=st.integers(1, 60), shard_size=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_a_resumed_run_has_the_shards_of_an_uninterrupted_run(size: int, shard_size: int, seed: int) -> None:
    choose = random.Random(seed)
    whole = missing_ranges(size, Finished((), ()), shard_size)
    done = [each for each in whole if choose.random() < 0.5]
    rest = missing_ranges(size, Finished(tuple(Piece(*each, ()) for each in done), ()), shard_size)
    assert sorted(done + rest) == whole


def test_records_are_read_as_they_were_written(tmp_path: Path, make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(9)
    results = make_results(cell, ["", "clean", "first"] * 3)
    paths = [store(tmp_path, cell, results, 0, 4), store(tmp_path, cell, results, 4, 9)]
    found = read_finished(tmp_path, cell)
    assert not found.rejected
    assert merge(found.pieces, cell.samples.ids) == results
    bytes_before = [path.read_bytes() for path in paths]
    store(tmp_path, cell, results, 0, 4)
    assert [path.read_bytes() for path in paths] == bytes_before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_rejected(
    tmp_path: Path, make_cell: Cells, make_results: Results, place: float, flip: int, cut: bool
) -> None:
    cell = make_cell(6)
    results = make_results(cell)
    path = store(tmp_path, cell, results, 0, 6)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content = content[:at] if cut else content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
    path.write_bytes(content)
    found = read_finished(tmp_path, cell)
    # A changed byte may be in unused metadata, such as the name of the writer. The records are then unchanged.
    assert [piece.results for piece in found.pieces] in ([], [tuple(results)])
    if cut:
        assert found.rejected[0][0] == path
        assert missing_ranges(6, found, 64) == [(0, 6)]


def test_files_of_another_identity_or_with_other_samples_are_rejected(
    tmp_path: Path, make_cell: Cells, make_results: Results
) -> None:
    cell = make_cell(6)
    other = replace(cell, threat=Threat("Linf", Fraction(4, 255)))
    store(tmp_path, other, make_results(other), 0, 2)
    store(tmp_path, cell, make_results(cell), 2, 4).rename(tmp_path / "000004-000006.parquet")
    (tmp_path / "notes.parquet").write_text("mine")
    found = read_finished(tmp_path, cell)
    assert not found.pieces
    reasons = {path.name: reason for path, reason in found.rejected}
    assert "fingerprint of another cell" in reasons["000000-000002.parquet"]
    assert "the file has records of other samples than its name says" in reasons["000004-000006.parquet"]
    assert "its name" in reasons["notes.parquet"]
    assert missing_ranges(6, found, 64) == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize(
    "name", ["seed=1", "a=b=c", "~", "~root", "s3:x", "gs:", "file:", "hdfs:x", "a b#1?c=2&d", "%41"]
)
def test_records_are_read_from_a_folder_with_any_name(
    tmp_path: Path, make_cell: Cells, make_results: Results, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cell = make_cell(6)
    results = make_results(cell)
    monkeypatch.chdir(tmp_path)
    for folder in (Path(name) / "cell", tmp_path / name / "absolute"):
        path = store(folder, cell, results, 0, 6)
        assert path.is_file() and not read_finished(folder, cell).rejected
        assert list(read_cell(folder, cell.fingerprint, 6)) == results
        entry_records.write_records(entry_records.records_bytes([results]), folder / "entry.parquet")
        assert entry_records.read_rows(folder / "entry.parquet", 6) == {0: (results, [])}
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_samples_in_two_files_count_once(tmp_path: Path, make_cell: Cells, make_results: Results) -> None:
    cell = make_cell(6)
    store(tmp_path, cell, make_results(cell), 0, 4)
    store(tmp_path, cell, make_results(cell), 2, 6)
    found = read_finished(tmp_path, cell)
    assert [(piece.start, piece.stop) for piece in found.pieces] == [(0, 4)]
    assert missing_ranges(6, found, 64) == [(4, 6)]


@given(st.text(min_size=1, max_size=120))
def test_safe_name_returns_one_path_component_for_any_text(text: str) -> None:
    name = safe_name(text)
    assert name not in ("", ".", "..") and len(name) < 100
    assert Path(name).name == name and not name.startswith((".", "-"))


def test_different_names_have_different_folders(tmp_path: Path, make_cell: Cells) -> None:
    names = ["a/b", "a_b", "a b", "../a", "open_clip:RN50/openai", "open_clip:RN50_openai"]
    assert len({safe_name(name) for name in names}) == len(names)
    cell = make_cell(3, model_name="../../etc")
    assert run_folder(tmp_path, cell).resolve().is_relative_to(tmp_path.resolve())
    other = replace(cell, threat=Threat("Linf", Fraction(4, 255)))
    assert cell_folder(tmp_path, cell) != cell_folder(tmp_path, other)


def test_a_locked_folder_cannot_be_locked_again(tmp_path: Path) -> None:
    message = f"another run is writing .* process {os.getpid()} on "
    with locked(tmp_path), pytest.raises(UserError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_released_and_its_partial_files_are_removed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from robustbench_vlm.engine.store import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    (Path(sys.argv[1]) / '.x.parquet.abc.partial').write_text('half')\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "may not write")],
)
def test_a_failed_write_raises_user_error_and_keeps_the_old_file(
    tmp_path: Path, make_cell: Cells, make_results: Results, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    cell = make_cell(6)
    path = store(tmp_path, cell, make_results(cell), 0, 6)
    before = path.read_bytes()

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(UserError, match=f"{message}.*repeat the command; nothing is lost"):
        store(tmp_path, cell, make_results(cell, ["first"] * 6), 0, 6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_full_disk_raises_user_error_and_leaves_no_partial_file(
    tmp_path: Path, make_cell: Cells, make_results: Results
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this test needs permission to mount a small disk")
    try:
        (disk / "filler").write_bytes(bytes(8192))
        cell = make_cell(400)
        with pytest.raises(UserError, match="the disk is full"):
            store(disk, cell, make_results(cell), 0, 400)
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_below_a_file_raises_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"give another folder, then"), locked(tmp_path / "file" / "runs"):
        pass
