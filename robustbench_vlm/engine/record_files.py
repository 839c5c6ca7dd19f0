"""Read Parquet files of records from other people, with limits on size, number of rows and length of texts.

A Parquet file of 100 kB can unpack to many gigabytes, because a long text may be stored once and used in every row.
`read_table_rows` therefore checks the sizes of all pages before it unpacks one, and reads the rows in batches. The
layout of a page header is defined in https://github.com/apache/parquet-format (parquet.thrift).
"""

import mmap
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from pyarrow.parquet import FileMetaData

LONGEST_TEXT = 4096
"""Largest number of bytes in a text of a record, such as the id of a sample."""
_ROW_BYTES, _FILE_BYTES = 512, 2**20
"""Largest size of a file, before and after it is unpacked: bytes for each row, and bytes that do not depend on the
number of rows. Real files need less than 30 bytes for each row.
"""
_BATCH = 4096
_ENCODINGS = {0, 2, 3, 8}
"""Numbers of the accepted encodings: plain, plain dictionary, RLE and RLE dictionary. In all other encodings, a small
page can give long texts.
"""
_DEEPEST = 8
_INTEGERS, _BOOLEANS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (3, 4, 5, 6), (1, 2), 7, 8, (9, 10), 12
"""Types of Thrift's compact protocol. The type 11, a map, is not used in page headers."""


def read_table_rows(
    path: Path, schemas: Sequence["Schema"], count: int, *, optional: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield each row of a Parquet file as a dict from column names to values.

    `schemas` has one or more accepted schemas, with the names and types of all columns. Only values of the columns in
    `optional` may be missing. Raises ValueError, OSError or an exception of pyarrow if the file
    has other columns, another number of rows than `count`, missing values, or texts or pages that are too large.
    """
    import pyarrow
    from pyarrow import parquet

    most = _FILE_BYTES + _ROW_BYTES * count
    if (size := path.stat().st_size) > most:
        raise ValueError(f"the file has {size:,} bytes, but {count} rows need at most {most:,}")
    texts = {field.name for schema in schemas for field in schema if field.type == pyarrow.string()}
    coded = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    expected = [
        pyarrow.schema([field.with_type(coded) if field.name in texts else field for field in schema])
        for schema in schemas
    ]
    # pyarrow gets an open file instead of a path, because pyarrow expands "~" in a path and reads "s3:x" as an address.
    with path.open("rb") as stream:
        # Texts stay in their dictionary, so a text that is stored once is also in memory once.
        metadata = parquet.read_metadata(stream)
        coded_names = [name for name in metadata.schema.names if name in texts]
        file = parquet.ParquetFile(stream, metadata=metadata, read_dictionary=coded_names)
        if file.metadata.num_rows != count or not any(map(file.schema_arrow.equals, expected)):
            raise ValueError("the columns or the number of rows are not the expected ones")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_pages(content, file.metadata, most)
        found = 0
        for batch in file.iter_batches(_BATCH, use_threads=False):
            plain = _checked_batch(batch, texts, optional)
            found += len(plain)
            if found > count:
                raise ValueError(f"the file has more than {count} rows")
            yield from plain.to_pylist()
    if found != count:
        raise ValueError(f"the file has {found} rows, but {count} are expected")


def _checked_batch(batch: "RecordBatch", texts: Collection[str], optional: Sequence[str]) -> "RecordBatch":
    """Return a batch of rows with plain texts. Raise ValueError if a value is missing or a text is too long."""
    import pyarrow
    from pyarrow import compute

    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count and name not in optional:
            raise ValueError(f"the column {name} has missing values")
        if name not in texts:
            columns.append(column)
            continue
        longest = compute.max(compute.binary_length(column.dictionary)).as_py() or 0
        if longest > LONGEST_TEXT:
            raise ValueError(f"the column {name} has a text of {longest:,} bytes, at most {LONGEST_TEXT} are allowed")
        columns.append(column.dictionary_decode())
    return pyarrow.RecordBatch.from_arrays(columns, batch.schema.names)


def _check_pages(content: mmap.mmap, metadata: "FileMetaData", most: int) -> None:
    """Raise ValueError if the pages of a file unpack to more than `most` bytes, or have an encoding that can grow.

    The sizes are read from the header of each page, because pyarrow uses these sizes, and not those in the footer.
    """
    total = 0
    chunks = [
        metadata.row_group(n).column(k) for n in range(metadata.num_row_groups) for k in range(metadata.num_columns)
    ]
    for chunk in chunks:
        starts = [chunk.data_page_offset, chunk.dictionary_page_offset or 0]
        at = min(start for start in starts if start > 0)
        end = at + chunk.total_compressed_size
        while at < end:
            page, at = _read_struct(content, at, 0)
            # The fields 2 and 3 are the sizes before and after compression. The fields 5, 7 and 8 describe a data page,
            # a dictionary page and a data page of version 2. Their fields 2, 2 and 4 are the encoding.
            if not all(isinstance(page.get(number, {}), dict) for number in (5, 7, 8)):
                raise ValueError("a page header is damaged")
            encoding = page.get(5, {}).get(2, page.get(7, {}).get(2, page.get(8, {}).get(4, 0)))
            unpacked, packed = page.get(2, -1), page.get(3, -1)
            if unpacked < 0 or packed < 0 or encoding not in _ENCODINGS:
                raise ValueError(f"a page has an encoding or a size that is not accepted ({encoding}, {unpacked})")
            total, at = total + unpacked, at + packed
            if total > most:
                raise ValueError(f"the rows unpack to more than {most:,} bytes")


def _read_struct(content: mmap.mmap, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read a struct in Thrift's compact protocol. Return its integers and structs by field number, and its end."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(content, at):
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(content, at)
        fields[number], at = _read_value(content, at, kind, depth)
    return fields, at + 1


def _read_value(content: mmap.mmap, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Read a value of the type `kind`, and return the value and its end. Only integers and structs have a value."""
    if depth > _DEEPEST:
        raise ValueError("a page header is nested too deeply")
    if kind in _BOOLEANS:
        return None, at
    if kind in _INTEGERS:
        return _read_integer(content, at)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _read_varint(content, at)
        return None, at + length
    if kind == _STRUCT:
        return _read_struct(content, at, depth + 1)
    if kind in _LISTS:
        head, at = _byte(content, at), at + 1
        length = head >> 4
        if length == 15:
            length, at = _read_varint(content, at)
        if length > len(content):
            raise ValueError("a page header has a list that is longer than the file")
        for _ in range(length):
            _, at = _read_value(content, at + (head & 15 in _BOOLEANS), head & 15, depth + 1)
        return None, at
    raise ValueError(f"a page header has the unknown type {kind}")


def _read_integer(content: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _read_varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(content, at)
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a page header has an integer of more than 64 bits")


def _byte(content: mmap.mmap, at: int) -> int:
    if not 0 <= at < len(content):
        raise ValueError("a page header is outside the file")
    return content[at]
