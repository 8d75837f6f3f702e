"""``index.parquet`` and ``lookup.arrow`` written group by group, so that no more than a group is ever held."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path

from .shards import LOOKED_UP, LOOKUP_ROWS, arrow


class IndexFiles:
    """Takes the rows of an index shard by shard. A group of them, in either file, is ``LOOKUP_ROWS`` rows.

    What is written depends on the rows and on where their shards begin, and not on how they were handed over. Columns
    of text have offsets of 32 bits: a group stays far below the 2 GiB that these reach.

    Args:
        index, lookup: files to write, see :func:`.index.merge` and :func:`.shards.write_lookup`.
    """

    def __init__(self, index: Path, lookup: Path) -> None:
        self._paths = index, lookup
        self._waiting: list = []  # tables, together less than a group
        self._rows = 0
        self._writers: tuple | None = None

    def add(self, table) -> None:
        """Rows of a shard, in their order."""
        start = 0
        while self._rows + len(table) - start >= LOOKUP_ROWS:
            count = LOOKUP_ROWS - self._rows
            self._keep(table.slice(start, count))
            self._write()
            start += count
        self._keep(table.slice(start))

    def _keep(self, table) -> None:
        self._waiting.append(table)
        self._rows += len(table)

    def _write(self) -> None:
        pa = arrow()
        group = pa.concat_tables(self._waiting)
        looked_up = group.select(LOOKED_UP)
        if self._writers is None:
            index, lookup = self._paths
            stream = pa.OSFile(str(lookup), "wb")
            writer = pa.ipc.new_file(stream, looked_up.schema)
            self._writers = pa.parquet.ParquetWriter(index, group.schema), writer, stream
        index, lookup, _ = self._writers
        index.write_table(group)
        for batch in looked_up.combine_chunks().to_batches():  # one, of so few rows
            lookup.write_batch(batch)
        self._waiting, self._rows = [], 0

    def __enter__(self) -> IndexFiles:
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        """Write what waits and the ends of both files; after an error, let go of them as they are."""
        if kind is None and self._rows:
            self._write()
        for writer in self._writers or ():
            with nullcontext() if kind is None else suppress(Exception):
                writer.close()
