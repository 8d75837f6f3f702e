"""Parquet files that are read whole: what they unpack to is held against their size before it is in memory.

A column of one word, repeated, takes no room in a file, and any amount of it in memory: some hundred bytes can stand
for gigabytes. The tables of this package have something of its own in every row (a path, a hash, a feature), so a file
that unpacks to far more than it holds is none of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import NotAFileError
from .regular_files import check_regular

if TYPE_CHECKING:
    import pyarrow

# What a table may have however small its file is, and for each byte of it besides
ROWS, ROWS_A_BYTE = 1 << 16, 0.5
NUMBERS, NUMBERS_A_BYTE = 1 << 24, 4
TEXT, TEXT_A_BYTE = 1 << 28, 64
MOST_COLUMNS, MOST_DEPTH = 1024, 8
LIMITS = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 1 << 20}  # of what a file says of itself


def read_parquet(path: str | os.PathLike, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """A Parquet file as ``pyarrow.parquet.read_table`` reads it.

    Args:
        path: of the file.
        columns: that are read; left out, all.

    Raises:
        NotAFileError: no file, or one that is larger in memory than any table of its size.
        OSError: it cannot be read.
        pyarrow.ArrowException: it is damaged, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    check_regular(path)
    size = os.stat(path).st_size
    with pyarrow.parquet.ParquetFile(path, **LIMITS) as file:
        texts = _check_metadata(path, size, file.metadata)
    # as dictionaries: a word that is repeated is there once until it is known how long all of them are
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts, **LIMITS) as file:
        if lacking := sorted(set(columns or ()) - set(file.schema_arrow.names)):
            raise pyarrow.ArrowInvalid(f"it has no column {lacking[0]}")
        table = file.read(None if columns is None else list(columns), use_threads=False)
    left = TEXT + TEXT_A_BYTE * size
    for place, column in enumerate(table.columns):
        kind = _without_dictionary(column.type)
        if kind != column.type:
            if (left := left - _length_of(column)) < 0:
                raise _too_much(path, "text")
            table = table.set_column(place, table.schema.field(place).with_type(kind), column.cast(kind))
    return table if columns is None else table.select(list(columns))


def count_rows(path: str | os.PathLike) -> int:
    """How many rows a Parquet file has; errors as of :func:`read_parquet`."""
    import pyarrow.parquet

    check_regular(path)
    with pyarrow.parquet.ParquetFile(path, **LIMITS) as file:
        _check_metadata(path, os.stat(path).st_size, file.metadata)
        return file.metadata.num_rows


def _check_metadata(path: str | os.PathLike, size: int, metadata: pyarrow.parquet.FileMetaData) -> list[str]:
    """Refuse a file that says of itself that it is far larger in memory; its columns of text."""
    if not 0 <= metadata.num_rows <= ROWS + ROWS_A_BYTE * size:
        raise _too_much(path, "rows")
    if metadata.num_columns > MOST_COLUMNS:
        raise _too_much(path, "columns")
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    if any(column.path.count(".") > MOST_DEPTH for column in columns):
        raise _too_much(path, "levels")
    texts = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise NotAFileError(path, "is damaged: its groups of rows are not all of its rows")
    if sum(max(chunk.num_values, 0) for chunk in chunks) > NUMBERS + NUMBERS_A_BYTE * size:
        raise _too_much(path, "values")
    if sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks) > TEXT + TEXT_A_BYTE * size:
        raise _too_much(path, "bytes")
    return [column.path for column in texts]


def _without_dictionary(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of a column of texts, or of lists of texts, that is read as dictionaries."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return kind.value_type
    if pyarrow.types.is_list(kind) and pyarrow.types.is_dictionary(kind.value_type):
        return pyarrow.list_(kind.value_field.with_type(kind.value_type.value_type))
    return kind


def _length_of(column: pyarrow.ChunkedArray) -> int:
    """Bytes of all texts in such a column."""
    import pyarrow
    import pyarrow.compute as compute

    lengths = 0
    for chunk in column.chunks:
        texts = chunk.flatten() if pyarrow.types.is_list(chunk.type) else chunk
        each = compute.binary_length(texts.dictionary).cast("int64")
        lengths += compute.sum(each.take(texts.indices)).as_py() or 0
    return lengths


def _too_much(path: str | os.PathLike, what: str) -> NotAFileError:
    return NotAFileError(path, f"has more {what} than any table of {os.stat(path).st_size} bytes")
