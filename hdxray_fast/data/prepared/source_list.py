"""``sources.parquet``: what a data set is made of, written down once; each part reads the rows of its own shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import ConfigError
from ...files import written_whole
from ...names import escaped, unescaped
from ...parquet_files import count_rows, open_parquet, read_parquet
from ...regular_files import reason_of
from ...terminal import visible
from .shards import LOOKUP_ROWS, arrow
from .sources import Source

SOURCES = "sources.parquet"
COLUMNS = tuple(column.name for column in fields(Source))
REQUIRED = ("path", "member", "patient", "offset", "size")  # those that the first of its version has


class PartOfSources:
    """The sources of a part of the shards: every ``of``-th, from ``which`` on.

    Args:
        out: folder of the data set.
        shard_size: images in a shard.
        which, of: as of :meth:`.config.PrepareConfig.share`.

    Attributes:
        shards: how many the whole data set has.
        numbers: of those that are this part's.

    Raises:
        ConfigError: the list is damaged.
    """

    def __init__(self, out: Path, shard_size: int, which: int, of: int) -> None:
        self.path, self.shard_size, self.which, self.of = out / SOURCES, shard_size, which, of
        with _reading(self.path):
            self.total = count_rows(self.path)
        self.shards = -(-self.total // shard_size)
        self.numbers = range(which, self.shards, of)

    def count(self, number: int) -> int:
        """How many sources a shard is made of."""
        return min(self.shard_size, self.total - number * self.shard_size)

    def sources(self, number: int) -> list[Source]:
        """Those of a shard of this part."""
        start = (number - self.which) // self.of * self.shard_size
        with _reading(self.path):
            return list(_sources(self._rows.slice(start, self.count(number))))

    @cached_property
    def _rows(self):
        """Of this part's shards, in order; read when the first of them is to be made."""
        pa = arrow()
        with _reading(self.path), open_parquet(self.path) as file:
            own, start = [], 0
            groups = range(file.metadata.num_row_groups)
            for batch in file.batches(LOOKUP_ROWS, groups, _present(file.schema.names)):
                shard = np.arange(start, start + len(batch)) // self.shard_size
                own.append(batch if self.of == 1 else batch.filter(pa.array(shard % self.of == self.which)))
                start += len(batch)
            return pa.concat_tables(own)


def read_sources(out: Path) -> list[Source]:
    """All of them; none, if there is no list yet."""
    if not (out / SOURCES).exists():
        return []
    with _reading(out / SOURCES):
        table = read_parquet(out / SOURCES)
        return list(_sources(table.select(_present(table.column_names))))


def write_sources(out: Path, sources: Sequence[Source]) -> None:
    """Write the list, whole or not at all."""
    pa = arrow()
    written = {"path": escaped, "member": escaped, "refused": visible}
    columns = {
        name: pa.array([written.get(name, _same)(getattr(source, name)) for source in sources]) for name in COLUMNS
    }
    with written_whole(out / SOURCES) as temporary:
        pa.parquet.write_table(pa.table(columns), temporary)


def _same(value: object) -> object:
    return value


def _present(names: Sequence[str]) -> list[str]:
    """Columns to read: earlier lists have fewer."""
    if missing := [name for name in REQUIRED if name not in names]:
        raise KeyError(f"no column {', '.join(missing)}")
    return [name for name in COLUMNS if name in names]


def _sources(table) -> Iterator[Source]:
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    columns |= {name: map(unescaped, columns[name]) for name in ("path", "member")}
    for values in zip(*columns.values(), strict=True):
        yield Source(**dict(zip(columns, values, strict=True)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, AttributeError, ValueError, arrow().ArrowException) as error:
        raise ConfigError(f"out: {path} is damaged ({reason_of(error)}); choose another folder") from error
