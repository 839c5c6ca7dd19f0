"""Run-folder storage: write, resume, read and merge per-sample records.

Each cell (one model, attack, dataset and eps) has a folder. Each shard (consecutive samples of a cell) has a file.
"""

import contextlib
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
from robustbench_vlm.core.files import exclusive_lock, explained, write_whole
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import DrawnResult, SampleResult
from robustbench_vlm.engine.cell import Cell, Samples, Shard
from robustbench_vlm.engine.record_files import read_table_rows

if TYPE_CHECKING:
    from pyarrow import Schema, Table

_FINGERPRINT = b"robustbench_vlm.fingerprint"
_CONTENT = b"robustbench_vlm.content"
_SHARD_NAME = re.compile(r"(\d+)-(\d+)\.parquet")
_LOCK = ".lock"


@dataclass(frozen=True)
class Piece:
    """The records in one shard file: those of the samples `start` to `stop` (exclusive) of a cell."""

    start: int
    stop: int
    results: tuple[SampleResult, ...]


@dataclass(frozen=True)
class Finished:
    """The record files of a cell: the contents of each valid file, and the reason for rejecting each other file."""

    pieces: tuple[Piece, ...]
    rejected: tuple[tuple[Path, str], ...]


def run_folder(out: Path, cell: Cell) -> Path:
    """Return the run folder of a cell, out/<track>/<model>/<attack>."""
    return out / safe_name(cell.track) / safe_name(cell.model_name) / safe_name(cell.attack.name)


def cell_folder(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell's records. Its name is unique, because it contains the start of the fingerprint."""
    name = cell_folder_name(cell.dataset.name, cell.threat.norm, cell.threat.eps_text, cell.fingerprint)
    return run_folder(out, cell) / name


def cell_folder_name(dataset: str, norm: str, eps_text: str, fingerprint: str) -> str:
    """Return the name of a cell's folder within the run folder."""
    return f"{safe_name(dataset)}-{norm}-{eps_text.replace('/', '_')}-{fingerprint[:8]}"


def safe_name(text: str) -> str:
    """Return a safe file name for a text.

    A safe text is returned unchanged. For other texts, the name consists of the safe characters and a digest.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("-")


def write_shard(folder: Path, shard: Shard, results: Sequence[SampleResult]) -> None:
    """Write the records of a shard to its file. Equal records give equal bytes.

    An interrupted write leaves no partial file. Raises UserError if the folder is not writable or the disk is full.
    """
    from pyarrow import parquet

    metadata = {_FINGERPRINT: shard.fingerprint.encode(), _CONTENT: fingerprint(list(results)).encode()}
    table = records_table(results).replace_schema_metadata(metadata)
    path = folder / f"{shard.start:06d}-{shard.stop:06d}.parquet"

    def write(partial: Path) -> None:
        # pyarrow gets an open file instead of a path. In a path, pyarrow expands "~" and reads "s3:x" as an address.
        with partial.open("wb") as file:
            parquet.write_table(table, file)

    write_whole(path, write)


def records_schema(kind: type[SampleResult] = SampleResult) -> "Schema":
    """Return the Arrow schema of records: one column per field. `kind` is the type of the records."""
    import pyarrow

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    return pyarrow.schema([(field.name, types[field.type]) for field in fields(kind)])  # type: ignore[index]


def records_table(results: Sequence[SampleResult]) -> "Table":
    """Return records as an Arrow table with one row per record and one column per field of the records."""
    import pyarrow

    schema = records_schema(type(results[0]) if results else SampleResult)
    columns = [[getattr(result, name) for result in results] for name in schema.names]
    arrays = [pyarrow.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def read_finished(folder: Path, cell: Cell) -> Finished:
    """Read the records in a cell's folder. Files are rejected if they are damaged, redundant, or from another cell."""
    return _read_shards(folder, cell.fingerprint, cell.samples)


def read_cell(folder: Path, fingerprint: str, n: int) -> tuple[SampleResult, ...]:
    """Read the `n` records of a cell from its folder, in the order of the samples.

    `fingerprint` is the fingerprint of the cell. Damaged and redundant files, and files of another cell, are ignored
    with a warning. Raises UserError if records are missing.
    """
    found = _read_shards(folder, fingerprint, None)
    results = tuple(result for piece in found.pieces for result in piece.results)
    is_whole = len(results) == n and (not found.pieces or found.pieces[-1].stop == n)
    if not is_whole and found.rejected:
        path, reason = found.rejected[0]
        raise UserError(f"{path} cannot be used: {reason}; run the same command again to compute its records")
    if not is_whole:
        raise UserError(
            f"{folder} has {len(results)} records, but {n} are expected: run the same command again to compute the"
            " missing ones"
        )
    for path, reason in found.rejected:
        warnings.warn(f"{path} was ignored: {reason}", stacklevel=2)
    return results


def missing_ranges(size: int, finished: Finished, shard_size: int) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of samples without records, in order. `size` is the number of samples.

    Ranges end at multiples of `shard_size`, so that a resumed run and an uninterrupted run write equal files. Each file
    of records that is damaged or from another run has its own range. The new file for this range then replaces it.
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
    """Lock a run folder for this process. Remove the partial files of runs that were killed.

    The operating system releases the lock when the process ends. Raises UserError if another run has the lock or the
    folder is not writable.
    """
    path = folder / _LOCK
    with contextlib.ExitStack() as held:
        try:
            handle = held.enter_context(exclusive_lock(path, wait=False))
        except BlockingIOError:
            owner = _owner(path) or "another process"
            raise UserError(
                f"another run is writing to {folder}: {owner}; wait until it ends, stop it, or give another folder"
                " with --out"
            ) from None
        with explained(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            for partial in folder.rglob(".*.partial"):
                partial.unlink(missing_ok=True)
        yield


def _owner(lock: Path) -> str:
    """Return the process that has the lock, as written in the lock file. Return "" if the file cannot be read."""
    try:
        with lock.open("rb") as file:
            return file.read(200).decode(errors="replace").strip()
    except OSError:
        return ""


def merge(pieces: Sequence[Piece], ids: Sequence[str]) -> list[SampleResult]:
    """Return the records of all pieces in the order of `ids`, the sample ids of a cell.

    Raises UserError if a sample is missing, occurs more than once, or is not a sample of the cell.
    """
    results = [result for piece in pieces for result in piece.results]
    counts = Counter(result.sample_id for result in results)
    problems = {
        "are missing": [sample for sample in ids if sample not in counts],
        "occur more than once": [sample for sample, count in counts.items() if count > 1],
        "are not in the cell": sorted(counts.keys() - set(ids)),
    }
    for problem, samples in problems.items():
        if samples:
            raise UserError(
                f"the records are not those of the protocol's samples: {len(samples)} samples {problem}, such as"
                f" {samples[0]!r}; remove the folder of the records and run the same command again"
            )
    by_id = {result.sample_id: result for result in results}
    return [by_id[sample] for sample in ids]


def _read_shards(folder: Path, expected: str, samples: Samples | None) -> Finished:
    """Read the shard files in the folder of a cell.

    `expected` is the fingerprint of the cell. If `samples` is given, files with records of other samples are rejected
    too.
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
            rejected.append((path, "the samples of the file are also in another file"))
            continue
        pieces.append(piece)
        seen |= ids
        covered = piece.stop
    return Finished(tuple(pieces), tuple(rejected))


def _read_shard(path: Path, expected: str, samples: Samples | None) -> Piece | str:
    """Return the records in a shard file, or the reason why the file cannot be used."""
    name = _SHARD_NAME.fullmatch(path.name)
    if not name:
        return "its name is not <start>-<stop>.parquet"
    start, stop = int(name[1]), int(name[2])
    results = _read_records(path, expected, stop - start)
    if isinstance(results, str):
        return results
    if not results:
        return "the file has no records"
    if samples is not None:
        about = samples.ids, samples.labels, samples.image_digests
        planned = list(zip(*(values[start:stop] for values in about), strict=True))
        if [(row.sample_id, row.label, row.image_sha256) for row in results] != planned:
            return "the file has records of other samples than its name says"
    return Piece(start, stop, results)


def _read_records(path: Path, expected: str, count: int) -> tuple[SampleResult, ...] | str:
    """Return the records in a shard file, or the reason why they cannot be used.

    `expected` is the fingerprint that the file must have, and `count` is the number of its records.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        rows = read_table_rows(path, [records_schema(), records_schema(DrawnResult)], count)
        results = tuple(DrawnResult(**row) if "draws" in row else SampleResult(**row) for row in rows)
        with path.open("rb") as file:
            metadata = parquet.read_metadata(file).metadata or {}
        content = fingerprint(list(results))
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        return f"it is damaged: {str(error).splitlines()[0]}"
    if metadata.get(_FINGERPRINT) != expected.encode():
        return "the file has the fingerprint of another cell"
    if metadata.get(_CONTENT) != content.encode():
        return "the file is damaged: its records do not match their digest"
    return results
