"""The records on disk: one folder a cell, one parquet file a shard; what is not there is work to do."""

import contextlib
import fcntl
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained, write_whole
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell import Cell, Shard

if TYPE_CHECKING:
    from pyarrow import Table

_FINGERPRINT = b"robustbench_vlm.fingerprint"
_CONTENT = b"robustbench_vlm.content"
_SHARD_NAME = re.compile(r"(\d+)-(\d+)\.parquet")
_LOCK = ".lock"


@dataclass(frozen=True)
class Piece:
    """A shard's records as found on disk."""

    start: int
    stop: int
    results: tuple[SampleResult, ...]


@dataclass(frozen=True)
class Finished:
    """What a cell has on disk: its sound pieces, and the names of the files that cannot be taken as done, with why."""

    pieces: tuple[Piece, ...]
    rejected: tuple[tuple[Path, str], ...]


def run_folder(out: Path, cell: Cell) -> Path:
    """Return the folder out/<track>/<model>/<attack> of a cell's run."""
    return out / safe_name(cell.track) / safe_name(cell.model_name) / safe_name(cell.attack.name)


def cell_folder(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell's records: readable, and distinct for every identity by the fingerprint's start."""
    threat = f"{cell.threat.norm}-{cell.threat.eps_text.replace('/', '_')}"
    return run_folder(out, cell) / f"{safe_name(cell.dataset.name)}-{threat}-{cell.fingerprint[:8]}"


def safe_name(text: str) -> str:
    """Return one path component for a name: itself where that is safe, else its safe letters and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def write_shard(folder: Path, shard: Shard, results: Sequence[SampleResult]) -> None:
    """Write a shard's records whole or not at all; equal records give equal bytes.

    Raises UserError where the folder cannot be written or the disk is full.
    """
    from pyarrow import parquet

    said = {_FINGERPRINT: shard.fingerprint.encode(), _CONTENT: fingerprint(list(results)).encode()}
    table = records_table(results).replace_schema_metadata(said)
    path = folder / f"{shard.start:06d}-{shard.stop:06d}.parquet"
    write_whole(path, lambda partial: parquet.write_table(table, partial))


def records_table(results: Sequence[SampleResult]) -> "Table":
    """Return records as an Arrow table, a column a field."""
    import pyarrow

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(field.name, types[field.type]) for field in fields(SampleResult)])  # type: ignore[index]
    columns = [[getattr(result, name) for result in results] for name in schema.names]
    arrays = [pyarrow.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def read_finished(folder: Path, cell: Cell) -> Finished:
    """Read a cell's folder; a file that is damaged, foreign or redundant is rejected, never taken as done."""
    pieces: list[Piece] = []
    rejected: list[tuple[Path, str]] = []
    covered = 0
    for path in sorted(folder.glob("*.parquet")):
        piece = _read_piece(path, cell)
        if isinstance(piece, str):
            rejected.append((path, piece))
        elif piece.start < covered:
            rejected.append((path, "its samples are in another file too"))
        else:
            pieces.append(piece)
            covered = piece.stop
    return Finished(tuple(pieces), tuple(rejected))


def missing_ranges(size: int, finished: Finished, shard_size: int) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of positions below `size` that no sound piece covers, in order.

    They are cut where shards of `shard_size` end, so that a resumed run writes the files of an unbroken one, and where
    rejected files do, so that these are written over.
    """
    covered = {n for piece in finished.pieces for n in range(piece.start, piece.stop)}
    cuts = set(range(0, size, shard_size))
    for path, _ in finished.rejected:
        if name := _SHARD_NAME.fullmatch(path.name):
            cuts |= {int(name[1]), int(name[2])}
    ranges: list[tuple[int, int]] = []
    for n in range(size):
        if n in covered:
            continue
        if ranges and ranges[-1][1] == n and n not in cuts:
            ranges[-1] = (ranges[-1][0], n + 1)
        else:
            ranges.append((n, n + 1))
    return ranges


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process, and clear away what killed runs left half written there.

    The system drops the lock with the process, however that ends. Raises UserError where another run holds it, and
    where the folder cannot be written.
    """
    path = folder / _LOCK
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"another run is writing into {folder}: {owner}; wait for it, stop it, or name another folder by --out"
            ) from None
        with explained(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            for partial in folder.rglob(".*.partial"):
                partial.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def read_records(path: Path, expected: str) -> tuple[SampleResult, ...] | str:
    """Return the records of a shard file that carries the fingerprint `expected`, or why they cannot be taken."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        results = tuple(SampleResult(**row) for row in table.to_pylist())
        content = fingerprint(list(results))
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        return f"it is damaged: {str(error).splitlines()[0]}"
    metadata = table.schema.metadata or {}
    if metadata.get(_FINGERPRINT) != expected.encode():
        return "it carries another fingerprint"
    if metadata.get(_CONTENT) != content.encode():
        return "it is damaged: its records are not those that were written"
    return results


def read_cell(folder: Path, fingerprint: str) -> tuple[SampleResult, ...]:
    """Return all records below a run's folder of the cell with a fingerprint, in their order.

    Raises UserError where there are none, and where they are damaged.
    """
    results: list[SampleResult] = []
    for path in sorted(folder.glob(f"*-{fingerprint[:8]}/*.parquet")):
        found = read_records(path, fingerprint)
        if isinstance(found, str):
            raise UserError(f"{path} cannot be taken: {found}; give the command of the run again")
        results += found
    if not results:
        raise UserError(f"the records of this run are not in {folder} any more: give the command of the run again")
    return tuple(results)


def _read_piece(path: Path, cell: Cell) -> Piece | str:
    """Return a shard file's piece, or why it is not one of the cell's."""
    name = _SHARD_NAME.fullmatch(path.name)
    if not name:
        return "its name is not <start>-<stop>.parquet"
    start, stop = int(name[1]), int(name[2])
    results = read_records(path, cell.fingerprint)
    if isinstance(results, str):
        return results
    samples = cell.samples
    expected = list(
        zip(samples.ids[start:stop], samples.labels[start:stop], samples.image_digests[start:stop], strict=True)
    )
    if not expected or [(row.sample_id, row.label, row.image_sha256) for row in results] != expected:
        return "its samples are not those that its name says"
    return Piece(start, stop, results)
