"""Records of an entry: make an entry and its parquet file from a run's records, and read and check the records."""

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, inside, sha256_of, write_whole
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import EstimatedAccuracy, SampleResult, Score
from robustbench_vlm.engine.cell_records import CellRecords, Unreachable, Unsound, checked
from robustbench_vlm.engine.record_files import read_table_rows
from robustbench_vlm.engine.store import records_schema, records_table
from robustbench_vlm.leaderboard.entry import (
    FORMAT,
    Entry,
    EntryCell,
    EntryDataset,
    EntryProtocol,
    EntryScore,
    EntryThreat,
    RecordsFile,
)
from robustbench_vlm.leaderboard.estimates import cell_estimates, entry_estimate, mean_estimates
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS

_SCORE_OF = ("model", "attack", "dataset")
"""Fields of `Score` that `EntryScore` leaves out, because the entry or its cell already has them."""
_STAGES = "stages"
"""Name of the column of `CellRecords.stages`. Only files with an unfinished cell have it. It is null for the samples of
finished cells."""
MAX_ROWS = 1_000_000
"""Largest number of records of an entry. Ten attacks at three radii on the datasets of `zeroshot15` have 450,000."""
_CELL = "cell"
"""Name of the column of cell indices in a records file. A cell is one attack on one dataset at one radius."""


def make_entry(
    evidence: Sequence[CellRecords],
    card: Mapping[str, Any],
    environment: Iterable[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> tuple[Entry, bytes]:
    """Return the entry of one model, without a history, and the bytes of its records file.

    `evidence` has the records of each cell (one attack, dataset and radius). Equal records give equal bytes.
    """
    first = evidence[0]
    content = records_bytes([each.results for each in evidence], [each.stages for each in evidence])
    name = records_name(first.score.model)
    entry = Entry(
        format=FORMAT,
        track=first.track,
        model=first.score.model,
        card=card,
        weights=first.identity["weights"],
        protocol=EntryProtocol(first.protocol, protocol),
        datasets={
            each.score.dataset: EntryDataset(*(each.identity[key] for key in ("classes", "prompts", "data")))
            for each in evidence
        },
        attacks={each.score.attack: each.identity["attack"]["stages"] for each in evidence},
        cells=tuple(_cell(each, estimate) for each, estimate in zip(evidence, cell_estimates(evidence), strict=True)),
        records=RecordsFile(name, hashlib.sha256(content).hexdigest(), url=""),
        environment=tuple(environment),
        history=(),
        counterexamples=(),
        links={},
        note="",
        estimates=mean_estimates(evidence, TRACKS.load(first.track).training_datasets),
    )
    return entry, content


def records_name(model: str) -> str:
    """Return the path of a model's records file, relative to the folder of its entry."""
    return f"records/{model}.parquet"


def read_entry_records(entry: Entry, folder: Path) -> tuple[CellRecords, ...]:
    """Read and check the records of an entry in `folder`.

    If the records file is not next to the entry, it is downloaded from its URL. Raises Unreachable if the download
    fails, and UserError if the URL is missing. Raises Unsound if the digest of the file or the scores of its records
    are not those in the entry.
    """
    count = _expected_rows(entry)
    path = records_path(entry.records, folder, entry.model)
    if sha256_of(path) != entry.records.sha256:
        raise Unsound(
            f"the digest of {path} is not the one in the entry for {entry.model!r}: restore the file that was submitted"
        )
    rows = read_rows(path, count)
    if set(rows) != set(range(len(entry.cells))):
        raise Unsound(
            f"{path} must contain records for each cell in the entry for {entry.model!r}, and for no other cell:"
            " restore the file that was submitted"
        )
    return tuple(_evidence(entry, cell, *rows[number]) for number, cell in enumerate(entry.cells))


def _expected_rows(entry: Entry) -> int:
    """Return the number of records of an entry. Raise Unsound if it is more than the protocol of the track allows.

    The limit comes from this package and not from the entry, because the entry may state any number.
    """
    if len({cell.condition for cell in entry.cells}) < len(entry.cells):
        raise Unsound(
            f"the entry of {entry.model!r} has two cells for one attack, dataset and radius: keep one of them"
        )
    samples = PROTOCOLS.load(TRACKS.load(entry.track).leaderboard_protocol).samples
    for cell in entry.cells:
        if samples is not None and cell.score.n > samples:
            raise Unsound(
                f"the entry of {entry.model!r} has {cell.score.n} samples of {cell.dataset}, but the protocol of the"
                f" track {entry.track!r} has at most {samples}: run the model again with this protocol"
            )
    count = sum(cell.score.n for cell in entry.cells)
    if count > MAX_ROWS:
        raise Unsound(
            f"the entry of {entry.model!r} has {count:,} records, but at most {MAX_ROWS:,} are accepted: submit fewer"
            " attacks or radii"
        )
    return count


def records_path(records: RecordsFile, folder: Path, model: str) -> Path:
    """Return the path of an entry's records file. A file that is not next to the entry is downloaded into the cache."""
    path = inside(folder, records.file)
    if path.is_file():
        return path
    if not records.url:
        raise UserError(
            f"the records of {model!r} are not at {path}, and the entry does not give a URL for them: put the file"
            " at this path"
        )
    cached = cache_folder() / "records" / f"{records.sha256}.parquet"
    try:
        download(records.url, cached, sha256=records.sha256)
    except UserError as error:
        raise Unreachable(f"the records of {model!r} cannot be downloaded: {error}") from error
    return cached


def write_records(content: bytes, path: Path) -> None:
    """Write the bytes of a records file atomically."""
    write_whole(path, lambda partial: partial.write_bytes(content))


def _cell(evidence: CellRecords, estimate: EstimatedAccuracy | None) -> EntryCell:
    score, threat = evidence.score, EntryThreat(**evidence.identity["threat"])
    numbers = EntryScore(**{key: value for key, value in vars(score).items() if key not in _SCORE_OF})
    content = _content(evidence.results, evidence.stages)
    about = score.attack, score.dataset, threat, evidence.fingerprint, content, numbers
    return EntryCell(*about, entry_estimate(estimate) if estimate else None)


def _content(results: Sequence[SampleResult], stages: Sequence[str]) -> str:
    """Return the digest of the records of a cell. If the cell is unfinished, the stages are covered too."""
    return fingerprint([list(results), list(stages)] if stages else list(results))


def records_bytes(cells: Sequence[Sequence[SampleResult]], stages: Sequence[Sequence[str]] = ()) -> bytes:
    """Return the bytes of a records file.

    `cells` has the records of each cell, in the order of the entry's cells. `stages` has `CellRecords.stages` of each
    cell. By default, no cell is unfinished.
    """
    import pyarrow
    from pyarrow import parquet

    tables = []
    for number, results in enumerate(cells):
        table = records_table(results)
        if any(stages):
            passed: Sequence[str | None] = stages[number] or [None] * len(results)
            table = table.append_column(_STAGES, pyarrow.array(passed, type=pyarrow.string()))
        tables.append(table.append_column(_CELL, pyarrow.array([number] * len(results), type=pyarrow.int32())))
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.concat_tables(tables), buffer, compression="zstd", compression_level=19)
    return buffer.getvalue()


def read_rows(path: Path, count: int) -> dict[int, tuple[list[SampleResult], list[str]]]:
    """Read a records file.

    Returns the records and `CellRecords.stages` of each cell (one attack, dataset and radius). The keys are the indices
    of the cells in the entry. The file must have `count` rows. Its columns must be the fields of `SampleResult`, the
    stages if a cell is unfinished, and the index of the cell. Raises Unsound for any other file.
    """
    import pyarrow

    rows: dict[int, tuple[list[SampleResult], list[str]]] = {}
    schema, number = records_schema(), pyarrow.field(_CELL, pyarrow.int32())
    schemas = schema.append(number), schema.append(pyarrow.field(_STAGES, pyarrow.string())).append(number)
    try:
        for row in read_table_rows(path, schemas, count, optional=(_STAGES,)):
            results, stages = rows.setdefault(row.pop(_CELL), ([], []))
            passed = row.pop(_STAGES, None)
            stages += [] if passed is None else [passed]
            results.append(SampleResult(**row))
    except (pyarrow.ArrowException, OSError, TypeError, ValueError, KeyError) as error:
        raise Unsound(
            f"{path} is not a valid records file: {str(error).splitlines()[0]}; restore the file that was submitted"
        ) from error
    if any(
        not math.isfinite(value) for some, _ in rows.values() for row in some for value in (row.margin, row.distance)
    ):
        raise Unsound(f"{path} has a margin or a distance that is NaN or infinite: restore the file that was submitted")
    return rows


def _evidence(entry: Entry, cell: EntryCell, results: Sequence[SampleResult], stages: Sequence[str]) -> CellRecords:
    about = f"the entry of {entry.model!r}: {cell.attack} / {cell.dataset}"
    if cell.dataset not in entry.datasets or cell.attack not in entry.attacks:
        raise Unsound(f"{about} lacks class names or attack stages: submit the run again")
    if _content(results, stages) != cell.content:
        raise Unsound(f"the records of {about} have changed since the entry was written: restore the records file")
    identity = {
        "weights": entry.weights,
        "dataset": cell.dataset,
        **plain(entry.datasets[cell.dataset]),
        "attack": {"name": cell.attack, "stages": list(entry.attacks[cell.attack])},
        "threat": plain(cell.threat),
        "protocol": entry.protocol.identity,
    }
    score = Score(entry.model, cell.attack, cell.dataset, **vars(cell.score))
    about_run = entry.track, entry.protocol.label, identity, cell.fingerprint
    return checked(CellRecords(*about_run, score, tuple(results), tuple(stages)))
