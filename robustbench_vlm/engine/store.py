"""Run-folder storage: write, resume, read and merge per-sample records, one folder per cell, one file per shard."""

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained, write_whole
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell import Cell, Samples, Shard

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
    """The records of a cell on disk: its sound pieces, and the rejected files with the reason for each."""

    pieces: tuple[Piece, ...]
    rejected: tuple[tuple[Path, str], ...]


def run_folder(out: Path, cell: Cell) -> Path:
    """Return the folder out/<track>/<model>/<attack> of a cell's run."""
    return out / safe_name(cell.track) / safe_name(cell.model_name) / safe_name(cell.attack.name)


def cell_folder(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell's records; the start of the fingerprint makes it distinct for every identity."""
    name = cell_folder_name(cell.dataset.name, cell.threat.norm, cell.threat.eps_text, cell.fingerprint)
    return run_folder(out, cell) / name


def cell_folder_name(dataset: str, norm: str, eps_text: str, fingerprint: str) -> str:
    """Return the name of a cell's folder below its run's folder."""
    return f"{safe_name(dataset)}-{norm}-{eps_text.replace('/', '_')}-{fingerprint[:8]}"


def safe_name(text: str) -> str:
    """Return one path component for a name: the name if it is safe, else its safe letters and a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def write_shard(folder: Path, shard: Shard, results: Sequence[SampleResult]) -> None:
    """Write a shard's records whole or not at all; equal records give equal bytes.

    Raises UserError if the folder cannot be written or the disk is full.
    """
    from pyarrow import parquet

    said = {_FINGERPRINT: shard.fingerprint.encode(), _CONTENT: fingerprint(list(results)).encode()}
    table = records_table(results).replace_schema_metadata(said)
    path = folder / f"{shard.start:06d}-{shard.stop:06d}.parquet"
    write_whole(path, lambda partial: parquet.write_table(table, partial))


def records_table(results: Sequence[SampleResult]) -> "Table":
    """Return records as an Arrow table with a column per field."""
    import pyarrow

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(field.name, types[field.type]) for field in fields(SampleResult)])  # type: ignore[index]
    columns = [[getattr(result, name) for result in results] for name in schema.names]
    arrays = [pyarrow.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def read_finished(folder: Path, cell: Cell) -> Finished:
    """Read a cell's folder; files that are damaged, foreign or redundant are rejected."""
    return _read_shards(folder, cell.fingerprint, cell.samples)


def read_cell(folder: Path, fingerprint: str, n: int) -> tuple[SampleResult, ...]:
    """Return the `n` records in the folder of the cell that has a fingerprint, in their order.

    Files that are damaged, foreign or redundant are ignored with a warning, as in `read_finished`. Raises UserError if
    records are missing.
    """
    found = _read_shards(folder, fingerprint, None)
    results = tuple(result for piece in found.pieces for result in piece.results)
    is_whole = len(results) == n and (not found.pieces or found.pieces[-1].stop == n)
    if not is_whole and found.rejected:
        path, reason = found.rejected[0]
        raise UserError(f"{path} cannot be used: {reason}; give the command of the run again")
    if not results:
        raise UserError(f"the records of this run are not in {folder} any more: give the command of the run again")
    if not is_whole:
        raise UserError(f"{folder} has {len(results)} records, expected {n}: give the command of the run again")
    for path, reason in found.rejected:
        warnings.warn(f"{path} was ignored: {reason}", stacklevel=2)
    return results


def missing_ranges(size: int, finished: Finished, shard_size: int) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of positions below `size` that no sound piece covers, in order.

    They are cut at the ends of shards of `shard_size`, so that a resumed run writes the files of an unbroken one, and
    at the ends of rejected files, so that these are overwritten.
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
    """Lock a run's folder for this process, and remove the half-written files of killed runs.

    The operating system releases the lock when the process ends. Raises UserError if another run holds it or the
    folder cannot be written.
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


def merge(pieces: Sequence[Piece], ids: Sequence[str]) -> list[SampleResult]:
    """Return the records of all pieces in the order of `ids`, the ids of a cell's samples.

    Raises UserError if a sample is missing, is there twice, or is foreign to the cell.
    """
    results = [result for piece in pieces for result in piece.results]
    counts = Counter(result.sample_id for result in results)
    problems = {
        "missing": [sample for sample in ids if sample not in counts],
        "there twice": [sample for sample, count in counts.items() if count > 1],
        "foreign": sorted(counts.keys() - set(ids)),
    }
    for problem, samples in problems.items():
        if samples:
            raise UserError(
                f"the records are not the protocol's: {len(samples)} samples are {problem}, {samples[0]!r} first;"
                " remove the cell's folder and give the same command again"
            )
    by_id = {result.sample_id: result for result in results}
    return [by_id[sample] for sample in ids]


def _read_shards(folder: Path, expected: str, samples: Samples | None) -> Finished:
    """Read the shard files of the cell with the fingerprint `expected`; the one reader of a cell's folder.

    With `samples`, those of the cell, records of other samples are rejected too.
    """
    pieces: list[Piece] = []
    rejected: list[tuple[Path, str]] = []
    seen: set[str] = set()
    covered = 0
    for path in sorted(folder.glob("*.parquet")):
        piece = _read_shard(path, expected, samples)
        if isinstance(piece, str):
            rejected.append((path, piece))
            continue
        ids = {result.sample_id for result in piece.results}
        if piece.start < covered or len(ids) < len(piece.results) or ids & seen:
            rejected.append((path, "its samples are in another file too"))
            continue
        pieces.append(piece)
        seen |= ids
        covered = piece.stop
    return Finished(tuple(pieces), tuple(rejected))


def _read_shard(path: Path, expected: str, samples: Samples | None) -> Piece | str:
    """Return the piece in a shard file, or the reason why it cannot be used."""
    name = _SHARD_NAME.fullmatch(path.name)
    if not name:
        return "its name is not <start>-<stop>.parquet"
    start, stop = int(name[1]), int(name[2])
    results = _read_records(path, expected)
    if isinstance(results, str):
        return results
    if not results or len(results) != stop - start:
        return "its samples are not those that its name says"
    if samples is not None:
        about = samples.ids, samples.labels, samples.image_digests
        planned = list(zip(*(values[start:stop] for values in about), strict=True))
        if [(row.sample_id, row.label, row.image_sha256) for row in results] != planned:
            return "its samples are not those that its name says"
    return Piece(start, stop, results)


def _read_records(path: Path, expected: str) -> tuple[SampleResult, ...] | str:
    """Return the records of a shard file that carries the fingerprint `expected`, or why they cannot be used."""
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
