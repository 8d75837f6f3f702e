"""Parquet files: what they unpack to is held against their size before it is in memory.

A column of one word, repeated, takes no room in a file, and any amount of it in memory: some hundred bytes can stand
for gigabytes. The tables of this package have something of its own in every row (a path, a hash, a feature), so a file
that unpacks to far more than it holds is none of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .errors import NotAFileError
from .regular_files import open_regular

if TYPE_CHECKING:
    import pyarrow

# What a table may have however small its file is, and for each byte of it besides
ROWS, ROWS_A_BYTE = 1 << 16, 0.5
NUMBERS, NUMBERS_A_BYTE = 1 << 24, 4
TEXT, TEXT_A_BYTE = 1 << 28, 64
MOST_COLUMNS, MOST_DEPTH = 1024, 8
OPTIONS = {
    "thrift_string_size_limit": 64 << 20,  # of what a file says of itself
    "thrift_container_size_limit": 1 << 20,
    # Read ahead, a thread of pyarrow's would give back a buffer of Python's, and abort the process if that ends then.
    "pre_buffer": False,
}


class CheckedParquet:
    """A Parquet file that is open, and says of itself nothing that no table of its size has; :func:`open_parquet`.

    Attributes:
        metadata: as pyarrow gives them.
        schema: columns with their types, and what the file says beside them.
    """

    def __init__(self, path: str | os.PathLike, file: pyarrow.parquet.ParquetFile, size: int) -> None:
        self.metadata = file.metadata
        self._path, self._file, self._most = path, file, TEXT + TEXT_A_BYTE * size
        self.schema: pyarrow.Schema = self._plain(file.schema_arrow.empty_table(), 0)[0].schema

    def read(self, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """Some columns, or all, with all rows; errors as of :func:`read_parquet`."""
        import pyarrow

        if lacking := sorted(set(columns or ()) - set(self.schema.names)):
            raise pyarrow.ArrowInvalid(f"it has no column {lacking[0]}")
        table = self._file.read(None if columns is None else list(columns), use_threads=False)
        table, _ = self._plain(table, 0)
        return table if columns is None else table.select(list(columns))

    def batches(self, rows: int, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pyarrow.Table]:
        """Some columns of some row groups, by numbers, in tables of at most ``rows``; errors as :meth:`read`."""
        import pyarrow

        length = 0
        for batch in self._file.iter_batches(rows, groups, columns, False):
            table, length = self._plain(pyarrow.Table.from_batches([batch]), length)
            yield table

    def _plain(self, table: pyarrow.Table, length: int) -> tuple[pyarrow.Table, int]:
        """The table with texts in place of dictionaries, and the length of all texts, with those before it."""
        for place, column in enumerate(table.columns):
            kind = _without_dictionary(column.type)
            if kind != column.type:
                if (length := length + _length_of(column)) > self._most:
                    raise _too_much(self._path, "text")
                table = table.set_column(place, table.schema.field(place).with_type(kind), column.cast(kind))
        return table, length


@contextmanager
def open_parquet(path: str | os.PathLike, **options: Any) -> Iterator[CheckedParquet]:
    """A Parquet file that is read by row groups, or by some columns at a time.

    Args:
        path: of the file, a name of any bytes.
        options: of ``pyarrow.parquet.ParquetFile``.

    Raises:
        NotAFileError, OSError, pyarrow.ArrowException: as of :func:`read_parquet`.
    """
    import pyarrow.parquet

    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        with pyarrow.parquet.ParquetFile(stream, **OPTIONS, **options) as first:
            texts = _check_metadata(path, size, first.metadata)
            # as dictionaries: a word that is repeated is there once until it is known how long all of them are
            with pyarrow.parquet.ParquetFile(
                stream, metadata=first.metadata, read_dictionary=texts, **OPTIONS, **options
            ) as file:
                yield CheckedParquet(path, file, size)


class OpenParquets:
    """Parquet files that stay open until others were asked for; each is opened as by :func:`open_parquet`.

    It is a context, and leaves no file open behind.

    Args:
        most: files that are open at once.
        options: of each.
    """

    def __init__(self, most: int, **options: Any) -> None:
        self._most, self._options = most, options
        self._open: dict[str | os.PathLike, tuple[CheckedParquet, ExitStack]] = {}  # the latest used last

    def __getitem__(self, path: str | os.PathLike) -> CheckedParquet:
        if path in self._open:
            self._open[path] = self._open.pop(path)
        else:
            if len(self._open) == self._most:
                _, stack = self._open.pop(next(iter(self._open)))
                stack.close()
            stack = ExitStack()
            self._open[path] = stack.enter_context(open_parquet(path, **self._options)), stack
        return self._open[path][0]

    def __enter__(self) -> OpenParquets:
        return self

    def __exit__(self, *error: object) -> None:
        for _, stack in self._open.values():
            stack.close()
        self._open.clear()


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
    with open_parquet(path) as file:
        return file.read(columns)


def count_rows(path: str | os.PathLike) -> int:
    """How many rows a Parquet file has; errors as of :func:`read_parquet`."""
    with open_parquet(path) as file:
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
    fixed = [max(column.length, 0) if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0 for column in columns]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise NotAFileError(path, "is damaged: its groups of rows are not all of its rows")
    if sum(max(chunk.num_values, 0) for chunk in chunks) > NUMBERS + NUMBERS_A_BYTE * size:
        raise _too_much(path, "values")
    unpacked = sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)
    # of bytes of one length each row has as many in memory, whatever is repeated in the file, or is null
    unpacked = max(unpacked, sum(fixed) * metadata.num_rows)
    if unpacked > TEXT + TEXT_A_BYTE * size:
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
