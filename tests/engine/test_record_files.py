"""Parquet files of records: hostile files are refused before they are unpacked, with a limit on the memory."""

import mmap
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from robustbench_vlm.core.files import package_folder
from robustbench_vlm.engine.record_files import _check_pages, _read_struct, read_table_rows

SCHEMA = pyarrow.schema([("text", pyarrow.string()), ("number", pyarrow.int64())])
READ = """
import resource, sys
from pathlib import Path
import pyarrow
from robustbench_vlm.engine.record_files import read_table_rows

resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
schema = pyarrow.schema([("text", pyarrow.string()), ("number", pyarrow.int64())])
for name in sys.argv[2:]:
    try:
        print(name, sum(1 for _ in read_table_rows(Path(name), [schema], int(sys.argv[1]))))
    except ValueError as error:
        print("refused:", error)
# The largest memory of this program in kB. The value of getrusage would include the program that started it.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def _table(rows: int, text: str = "w") -> pyarrow.Table:
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, "int32"), [text])
    return pyarrow.table({"text": texts, "number": range(rows)})


def test_a_file_that_unpacks_to_many_gigabytes_is_refused_with_little_memory(tmp_path: Path) -> None:
    # With 20,800 rows, as in an entry, the texts unpack to 50 GB.
    rows = 20_800
    for name, length, options in (
        ("long", 2_500_000, {}),
        ("huge", 100_000_000, {}),
        ("grows", 600_000, {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}),
        ("valid", 1, {}),
    ):
        table = _table(rows, "w" * length)
        if name == "grows":
            table = pyarrow.concat_tables([_table(50, "w" * length).cast(SCHEMA), _table(rows - 50).cast(SCHEMA)])
        with (tmp_path / name).open("wb") as file:
            parquet.write_table(table, file, compression="zstd", store_schema=False, **options)
        assert (tmp_path / name).stat().st_size < 300_000
    names = ["long", "huge", "grows", "valid"]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(rows), *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    long, huge, grows, valid, memory = done.stdout.splitlines()
    assert long == "refused: the column text has a text of 2,500,000 bytes, at most 4096 are allowed"
    assert huge.startswith("refused: the rows unpack to more than") and "an encoding or a size" in grows
    assert valid == "valid 20800" and int(memory) < 400_000


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_the_sizes_of_all_pages_are_found(version: str, compression: str, tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"text {n % 700}" for n in range(9000)], "number": range(9000)})
    options = {"compression": compression, "data_page_version": version, "row_group_size": 2500, "data_page_size": 4000}
    parquet.write_table(table, tmp_path / "a", **options)
    metadata = parquet.read_metadata(tmp_path / "a")
    columns = [metadata.row_group(n).column(k) for n in range(metadata.num_row_groups) for k in range(2)]
    # The sizes in the footer include the headers of the pages.
    stated = sum(column.total_uncompressed_size for column in columns)
    with (tmp_path / "a").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_pages(content, metadata, stated)
        with pytest.raises(ValueError, match="unpack to more than"):
            _check_pages(content, metadata, int(0.9 * stated))
    assert list(read_table_rows(tmp_path / "a", [SCHEMA], 9000)) == table.to_pylist()


def test_bundled_records_are_far_below_the_limits() -> None:
    for path in sorted((package_folder("leaderboards") / "mini" / "records").glob("*.parquet"))[:1]:
        metadata = parquet.read_metadata(path)
        assert (
            sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)) < metadata.num_rows * 64
        )


@given(st.binary(max_size=200))
def test_every_page_header_is_read_or_refused(content: bytes) -> None:
    with mmap.mmap(-1, len(content) or 1) as place:
        place[: len(content)] = content
        try:
            _, end = _read_struct(place, 0, 0)
        except ValueError:
            return
        assert 0 < end <= len(place)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pyarrow.table({"text": ["a", None], "number": [1, 2]}), "the column text has missing values"),
        (pyarrow.table({"text": ["a"], "number": [1]}), "number of rows"),
        (pyarrow.table({"text": ["a", "b"], "number": [1.0, 2.0]}), "the columns or"),
        (pyarrow.table({"text": ["a", "b"], "number": [1, 2], "more": [1, 2]}), "the columns or"),
        (pyarrow.table({"text": [b"\xff", b"a"], "number": [1, 2]}).cast(SCHEMA, safe=False), "utf-8"),
    ],
)
def test_other_tables_are_refused(table: pyarrow.Table, message: str, tmp_path: Path) -> None:
    parquet.write_table(table, tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        list(read_table_rows(tmp_path / "a", [SCHEMA], 2))
    if "missing" in message:
        assert len(list(read_table_rows(tmp_path / "a", [SCHEMA], 2, optional=["text"]))) == 2
